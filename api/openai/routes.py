"""/v1: chat completions, completions, embeddings, models."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from api.openai.answers import ChatCompletion, Embeddings, ModelEntries, ModelEntry, TextCompletion
from api.openai.embedding import EmbeddingRun
from api.openai.fields import ChatRequest, CompletionRequest, EmbeddingRequest, GenerationFields
from api.openai.generation import Generation, UsageWish
from api.openai.inference_span import Operation, inference_span
from api.openai.order import LONG_TEXT, Order, order_chat, order_completion, require_head
from api.openai.parsing import parse_generation
from api.openai.shapes import ChatChunks, CompletionChunks, Shape
from api.openai.signs_of_life import SignsOfLife, ending_clearly
from api.services import Services
from api.web.bare_route import BareRoute
from api.web.documentation import body_of, errors, events
from api.web.exchange import Exchange, Sink
from api.web.middleware import grant_of
from firstlight.database.models_repository import ModelRecord
from firstlight.database.usage_repository import Usage
from firstlight.domain.errors import InvalidInput

Fields = TypeVar("Fields", bound=GenerationFields)

_GENERATION_ERRORS = errors(400, 404, 413, 429, 503)


def openai_routes(services: Services) -> APIRouter:
    router = APIRouter()
    # No parameters but the body, which is parsed here.
    bare = APIRouter(prefix="/v1", tags=["OpenAI"], route_class=BareRoute)

    @bare.post(
        "/chat/completions",
        response_model=None,
        openapi_extra=body_of(ChatRequest),
        responses={200: {"model": ChatCompletion, **events()}, **_GENERATION_ERRORS},
    )
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation; a model that does not run is started first."""
        return Exchange(_Chat(services, ChatRequest, request, await request.body()).run)

    @bare.post(
        "/completions",
        response_model=None,
        openapi_extra=body_of(CompletionRequest),
        responses={200: {"model": TextCompletion, **events()}, **_GENERATION_ERRORS},
    )
    async def completions(request: Request) -> Response:
        """Go on with a text; a model that does not run is started first."""
        return Exchange(_Completion(services, CompletionRequest, request, await request.body()).run)

    @bare.post(
        "/embeddings",
        response_model=None,
        openapi_extra=body_of(EmbeddingRequest),
        responses={
            200: {"model": Embeddings},
            **_GENERATION_ERRORS,
        },
    )
    async def embeddings(request: Request) -> Response:
        """A vector for each input; a model that does not run is started first."""
        wish = parse_generation(EmbeddingRequest, await request.body())
        return Exchange(EmbeddingRun(services, wish, request.state.request_id, grant_of(request.scope)).run)

    @router.get("/models", response_model=None, responses={200: {"model": ModelEntries}, **errors()})
    async def models() -> Response:
        """All models that are deployed, running or not."""
        return JSONResponse({"object": "list", "data": [_entry(row) for row in services.catalog.records]})

    @router.get(
        "/models/{name}", response_model=None, responses={200: {"model": ModelEntry}, **errors(404, 503)}
    )
    async def model(name: str) -> Response:
        """One deployed model."""
        return JSONResponse(_entry(await services.catalog.find(name)))

    bare.include_router(router)
    return bare


# Any: JSON.
def _entry(record: ModelRecord) -> dict[str, Any]:
    return {
        "id": record.name,
        "object": "model",
        "created": int(record.created_at_unix_s),
        "owned_by": "firstlight",
    }


class _Run(ABC, Generic[Fields]):
    """One request from its body to its last byte."""

    operation: ClassVar[Operation]

    def __init__(self, services: Services, kind: type[Fields], request: Request, body: bytes) -> None:
        """Raises: InvalidInput, UnsupportedParameter."""
        self._services = services
        self._grant = grant_of(request.scope)
        self._fields = wish = parse_generation(kind, body)
        self._is_short = len(body) <= LONG_TEXT
        self._request_id: str = request.state.request_id
        self._clock = services.clock()
        if wish.stream_options is not None and not wish.stream:
            raise InvalidInput("stream_options needs stream to be true", param="stream_options")

    async def run(self, sink: Sink) -> None:
        services = self._services
        record = await services.admission.find(self._fields.model)
        span = inference_span(self.operation, record.name, self._fields, request_id=self._request_id)
        with services.arrivals.active(record.name), span:
            await self._run(record, sink)

    async def _run(self, record: ModelRecord, sink: Sink) -> None:
        services, lane = self._services, self._services.table.lane(record.name)
        if (known := services.texts.loaded(record.checkpoint_id)) is not None:
            # Before anything is started that could not answer.
            require_head(record, known)
        # Who cannot even wait hears it before anything is done for it, and before a stream could begin.
        lane.check_line()
        # Before the prompt is put into tokens, which may take longer than all that follows.
        await services.foretell(record.name, self._request_id)
        signs = SignsOfLife(lane, self._clock, services.patience)
        if not self._fields.stream:
            order = await self._order(record)
            await self._generation(order, signs).answer(sink, self._shape(order))
            return
        async with ending_clearly(sink):
            if known is not None and self._is_short:
                # Done before it could be watched.
                order = await self._order(record)
            else:
                order = await signs.during(self._order(record), sink)
            await self._generation(order, signs).stream(sink, self._shape(order), self._usage())

    def _generation(self, order: Order, signs: SignsOfLife) -> Generation:
        return Generation(
            order,
            dispatcher=self._services.dispatcher,
            metrics=self._services.metrics,
            on_first_token=self._services.ledger.first_token,
            on_end=lambda prompt, generated: self._note_usage(order.record.name, prompt, generated),
            signs=signs,
        )

    def _note_usage(self, model: str, prompt_tokens: int, completion_tokens: int) -> None:
        if self._grant is not None:
            used = Usage(requests=1, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
            self._services.usage.note(self._grant.key_id, model, used)

    def _usage(self) -> UsageWish:
        options = self._fields.stream_options
        if options is None:
            return UsageWish()
        return UsageWish(at_end=options.include_usage, always=options.continuous_usage_stats)

    @abstractmethod
    async def _order(self, record: ModelRecord) -> Order:
        """What is asked for, in tokens. Raises: InvalidInput."""

    @abstractmethod
    def _shape(self, order: Order) -> Shape:
        """The JSON that the answer takes."""


class _Chat(_Run[ChatRequest]):
    operation = "chat"

    async def _order(self, record: ModelRecord) -> Order:
        text = await self._services.admission.text_of(
            record, deadline_s=self._clock.deadline_s, request_id=self._request_id
        )
        return await order_chat(self._fields, record=record, text=text, request_id=self._request_id)

    def _shape(self, order: Order) -> Shape:
        return ChatChunks(
            answer_id=f"chatcmpl-{self._request_id}",
            kind="chat.completion.chunk" if self._fields.stream else "chat.completion",
            created=int(time.time()),
            model=order.record.name,
        )


class _Completion(_Run[CompletionRequest]):
    operation = "text_completion"

    async def _order(self, record: ModelRecord) -> Order:
        text = await self._services.admission.text_of(
            record, deadline_s=self._clock.deadline_s, request_id=self._request_id
        )
        return await order_completion(self._fields, record=record, text=text, request_id=self._request_id)

    def _shape(self, order: Order) -> Shape:
        return CompletionChunks(
            answer_id=f"cmpl-{self._request_id}",
            created=int(time.time()),
            model=order.record.name,
            prefixes=[choice.prefix for choice in order.choices],
        )
