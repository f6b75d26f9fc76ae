"""Ways in which a file may be damaged."""

from collections.abc import Callable

from hypothesis import strategies as st

Change = Callable[[bytes], bytes]


@st.composite
def changes(draw: st.DrawFn) -> Change:
    """A way to damage a file: cut, overwrite, move or replace a part of it, often near its beginning or end."""
    kind = draw(st.sampled_from(["cut", "overwrite", "zeros", "twice", "missing", "number", "noise"]))
    place, length = draw(st.floats(0, 1)), draw(st.integers(1, 64))
    near = draw(st.sampled_from(["begin", "end", "any"]))
    noise = draw(st.binary(min_size=1, max_size=64))
    number = draw(st.sampled_from([0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1]))

    def change(whole: bytes) -> bytes:
        at = int(place * len(whole)) if near == "any" else int(place * min(512, len(whole)))
        at = len(whole) - at if near == "end" else at
        match kind:
            case "cut":
                return whole[:at]
            case "overwrite":
                return whole[:at] + noise + whole[at + len(noise) :]
            case "zeros":
                return whole[:at] + bytes(length) + whole[at + length :]
            case "twice":
                return whole[: at + length] + whole[at:]
            case "missing":
                return whole[:at] + whole[at + length :]
            case "number":
                return whole[:at] + number.to_bytes(4, "little") + whole[at + 4 :]
            case _:
                return noise * length

    return change


def several(whole: bytes, made: list[Change]) -> bytes:
    for change in made:
        whole = change(whole)
    return whole


DAMAGE = st.lists(changes(), min_size=1, max_size=3)
