"""Django Channels, with the groups of its tutorial and the layer in memory."""

from typing import Any

from channels.generic.websocket import (  # type: ignore[import-untyped]
    AsyncWebsocketConsumer,
)
from channels.routing import ProtocolTypeRouter, URLRouter  # type: ignore[import-untyped]
from django.conf import settings  # type: ignore[import-untyped]
from django.urls import path  # type: ignore[import-untyped]

LAYER = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
settings.configure(CHANNEL_LAYERS=LAYER, ALLOWED_HOSTS=["*"], SECRET_KEY="of a benchmark")


class Listen(AsyncWebsocketConsumer):  # type: ignore[misc]
    """Hears what is published."""

    async def connect(self) -> None:
        await self.accept()
        for name in self.groups_asked:
            await self.channel_layer.group_add(name, self.channel_name)
        await self.send(text_data="ready")

    @property
    def groups_asked(self) -> list[str]:
        names: str = self.scope["url_route"]["kwargs"]["names"]
        return names.split("-")

    async def disconnect(self, _code: int) -> None:
        for name in self.groups_asked:
            await self.channel_layer.group_discard(name, self.channel_name)

    async def chat_message(self, event: dict[str, Any]) -> None:
        await self.send(text_data=event["message"])


class Publish(AsyncWebsocketConsumer):  # type: ignore[misc]
    """Publishes text by text."""

    async def receive(self, text_data: str) -> None:
        message = {"type": "chat.message", "message": text_data}
        await self.channel_layer.group_send(text_data[:6], message)


routes = [path("listen/<names>", Listen.as_asgi()), path("publish", Publish.as_asgi())]
app = ProtocolTypeRouter({"websocket": URLRouter(routes)})
