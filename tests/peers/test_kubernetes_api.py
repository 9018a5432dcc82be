"""The real API server does what the contract says, so that whatever else keeps the contract can stand in for it."""

import pytest
from support.kube_apiserver import ApiServer
from support.kubernetes_contract import KubernetesApiContract

pytestmark = pytest.mark.peers


class TestKubeApiserver(KubernetesApiContract):
    @pytest.fixture
    def api(self, api_server: ApiServer) -> ApiServer:
        return api_server
