"""The protocols, by path. A new one is a module with a ``Protocol`` and a line here."""

from onebest_server.protocol import Protocol
from onebest_server.protocols.deepgram import DeepgramProtocol
from onebest_server.protocols.onebest import OnebestProtocol
from onebest_server.protocols.openai import OpenaiProtocol
from onebest_server.protocols.sherpa import SherpaProtocol
from onebest_server.protocols.vosk import VoskProtocol

PROTOCOLS: dict[str, type[Protocol]] = {
    "/": SherpaProtocol,
    "/onebest": OnebestProtocol,
    "/vosk": VoskProtocol,
    "/v1/listen": DeepgramProtocol,
    "/v1/realtime": OpenaiProtocol,
}
