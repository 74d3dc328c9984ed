import pytest
from short_runs import write_text


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture
def figures(record_property):
    """What a test measured, for the table that the runner of the matrix makes: `figures(kills=50, seconds=1.5)`."""

    def note(*counts, **found):
        for name, value in {**{name: count for page in counts for name, count in page.items()}, **found}.items():
            record_property(name, value)

    return note
