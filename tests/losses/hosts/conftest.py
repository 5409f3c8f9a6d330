import pytest

from tests.losses.hosts.models import write_parts


@pytest.fixture(scope="session")
def bert(tmp_path_factory) -> str:
    """The folder of a tiny random BERT."""
    return write_parts(tmp_path_factory.mktemp("bert"))
