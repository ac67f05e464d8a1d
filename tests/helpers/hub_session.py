"""The stand-in of the hub as the one that the library talks to, and a cache of the library's own."""

from contextlib import contextmanager

from hub_stand_in import stand_in
from huggingface_hub import constants


@contextmanager
def session(monkeypatch, cache):
    """Yield the hub, with its token in the environment; what is fetched lies below `cache`."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # a service of its own beside the hub
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # as machines without a network set it
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(cache / "assets"))
    with stand_in() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        yield hub
