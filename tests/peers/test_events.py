"""The events receiver at a real API server."""

import pytest
from support.events_contract import EventsContract
from support.kube_apiserver import ApiServer

pytestmark = pytest.mark.peers


class TestKubeApiserver(EventsContract):
    @pytest.fixture
    def api(self, api_server: ApiServer) -> ApiServer:
        return api_server

    @pytest.fixture
    def ca_file(self, api_server: ApiServer) -> str:
        return str(api_server.ca_file)
