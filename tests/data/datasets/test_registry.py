"""What `data.dataset` takes."""

from eav_ray.config.kinds import list_package_datasets
from eav_ray.data.datasets import registry


def test_each_data_set_that_is_offered_has_a_reader_of_that_name() -> None:
    names = list_package_datasets()
    assert {"bids", "cremad", "eav", "eegmat", "ravdess", "recordings_table"} <= set(names)
    assert [registry.find_reader(name).name for name in names] == list(names)
