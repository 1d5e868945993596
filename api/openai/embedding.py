"""One request for embeddings, from its parsed body to its answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from api.auth import Grant
from api.embedding_journal import EmbeddingJournal
from api.openai.fields import EmbeddingRequest
from api.openai.inference_span import inference_span, note_answer
from api.openai.order import LONG_TEXT, check_ids, context_limit
from api.openai.vectors import embeddings_json
from api.routing.lane import Slot
from api.services import Services
from api.text.model_text import ModelText
from api.web.exchange import Sink
from firstlight.database.models_repository import ModelRecord
from firstlight.database.usage_repository import Usage
from firstlight.domain.embedding import Embedding
from firstlight.domain.errors import ContextTooLong, InvalidInput, UnsupportedParameter
from firstlight.rpc import engine_pb2

# As a finished_reason: every text has been through the model to its end.
_TO_ITS_END = "stop"


class EmbeddingRun:
    """Takes one place at one instance, however many texts it has."""

    def __init__(
        self, services: Services, wish: EmbeddingRequest, request_id: str, grant: Grant | None
    ) -> None:
        self._services = services
        self._wish = wish
        self._request_id = request_id
        self._grant = grant
        self._clock = services.clock()

    async def run(self, sink: Sink) -> None:
        services = self._services
        record = await services.admission.find(self._wish.model)
        span = inference_span("embeddings", record.name, None, request_id=self._request_id)
        with services.arrivals.active(record.name), span:
            await self._run(record, sink)

    async def _run(self, record: ModelRecord, sink: Sink) -> None:
        services, lane = self._services, self._services.table.lane(record.name)
        if (known := services.texts.loaded(record.checkpoint_id)) is not None:
            # Before anything is started that could not answer.
            embedding_of(record, known)
        lane.check_line()
        await services.foretell(record.name, self._request_id)
        text = await services.admission.text_of(
            record, deadline_s=self._clock.deadline_s, request_id=self._request_id
        )
        journal = await self._journal(record, text)
        try:
            await services.dispatcher.vectors(
                journal,
                lane,
                deadline_s=self._clock.deadline_s,
                on_first=lambda slot, dispatched_s, chunk: self._heard(record, slot, dispatched_s, chunk),
            )
            await sink.answer(await asyncio.to_thread(self._answer, record, journal))
            for _ in journal.inputs:
                services.metrics.finished(record.name, _TO_ITS_END)
        finally:
            self._count(record, journal.prompt_tokens)

    async def _journal(self, record: ModelRecord, text: ModelText) -> EmbeddingJournal:
        """The inputs in tokens. Raises: InvalidInput, UnsupportedParameter, ContextTooLong."""
        embedding = embedding_of(record, text)
        if self._wish.dimensions is not None and self._wish.dimensions > embedding.size:
            raise InvalidInput(f"the model's vectors have {embedding.size} dimensions", param="dimensions")
        inputs = await _in_tokens(self._wish.input, text)
        limit = context_limit(record, text)
        for index, ids in enumerate(inputs):
            check_ids(ids, text, param="input")
            if limit is not None and len(ids) > limit:
                raise ContextTooLong(
                    f"the model's context is {limit} tokens; input {index} has {len(ids)}", param="input"
                )
        return EmbeddingJournal(self._request_id, inputs)

    def _answer(self, record: ModelRecord, journal: EmbeddingJournal) -> bytes:
        return embeddings_json(
            [journal.vectors[index] for index in range(len(journal.inputs))],
            dimensions=self._wish.dimensions,
            in_base64=self._wish.encoding_format == "base64",
            model=record.name,
            prompt_tokens=journal.prompt_tokens,
        )

    def _heard(
        self, record: ModelRecord, slot: Slot, dispatched_s: float, chunk: engine_pb2.EmbedChunk
    ) -> None:
        """The first vector is to a start what a first token is."""
        figures = self._services.metrics.of(record.name)
        figures.queue_s.observe(slot.waited_s)
        figures.engine_queue_s.observe(slot.waited_s + chunk.queue_s)
        figures.prefill_s.observe(chunk.prefill_s)
        # What it waited for weights is the load's, and is counted there.
        self._services.ledger.first_token(
            slot, dispatched_s + chunk.weights_s, chunk.prefill_s, self._clock.arrived_s
        )

    def _count(self, record: ModelRecord, prompt_tokens: int) -> None:
        figures = self._services.metrics.of(record.name)
        figures.request_s.observe(time.monotonic() - self._clock.arrived_s)
        figures.prompt_tokens.inc(prompt_tokens)
        figures.request_prompt_tokens.observe(prompt_tokens)
        note_answer(model=record.name, prompt_tokens=prompt_tokens, generated_tokens=0, reasons=[])
        if self._grant is not None:
            used = Usage(requests=1, prompt_tokens=prompt_tokens, completion_tokens=0)
            self._services.usage.note(self._grant.key_id, record.name, used)


def embedding_of(record: ModelRecord, text: ModelText) -> Embedding:
    """Raises: UnsupportedParameter for a model that only generates."""
    if text.embedding is None:
        raise UnsupportedParameter(
            f"model {record.name!r} generates text: it has no embeddings", param="model", model=record.name
        )
    return text.embedding


async def _in_tokens(
    given: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]], text: ModelText
) -> list[Sequence[int]]:
    """Each text with the model's special tokens; tokens as they are. Raises: InvalidInput."""
    if not isinstance(given, str) and isinstance(given[0], int):
        return [given]  # type: ignore[list-item]  # all are tokens
    inputs: list[str | Sequence[int]] = [given] if isinstance(given, str) else list(given)  # type: ignore[arg-type]
    if not all(inputs):
        raise InvalidInput("an input is empty", param="input")

    def encode() -> list[Sequence[int]]:
        return [text.encode_to_embed(one) if isinstance(one, str) else one for one in inputs]

    is_long = sum(len(one) for one in inputs if isinstance(one, str)) > LONG_TEXT
    return await asyncio.to_thread(encode) if is_long else encode()
