"""One rank's share of the engine: its weights, KV pool and request table, and the forward pass
over a plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from lightllm_kernels.workspace import Workspace
from lightllm_server.config import ServerConfig
from lightllm_server.engine.cuda_graphs import DecodeGraphs, Recorder, StaticStep, graph_sizes
from lightllm_server.engine.device import (
    is_device_fault,
    resolve_device,
    resolve_dtype,
    resolve_kv_dtype,
)
from lightllm_server.engine.forward_state import (
    RequestTable,
    make_step_inputs,
    static_decode_batch,
)
from lightllm_server.engine.kv_pool import KVLayout, KVPool
from lightllm_server.engine.limits import max_request_length
from lightllm_server.engine.parallel import Ranks
from lightllm_server.engine.prompt_logprobs import prompt_logits
from lightllm_server.engine.staging import make_uploader
from lightllm_server.errors import ConfigError
from lightllm_server.layers.attention import AttentionState
from lightllm_server.layers.parameter import WeightOptions
from lightllm_server.models.checkpoint import read_checkpoint
from lightllm_server.models.config import ModelConfig
from lightllm_server.models.dummy_weights import load_dummy_weights
from lightllm_server.models.registry import expected_tensors, load_model_class
from lightllm_server.models.weights import load_weights
from lightllm_server.router.step_plan import StepPlan
from lightllm_server.status_page import Field, StatusRow

__all__ = ["ModelShard"]


class ModelShard:
    """Made on every rank alike; not for use by two threads at once.

    Raises ConfigError (ModelError for the model directory) for what cannot be loaded.
    """

    def __init__(
        self, config: ServerConfig, model_config: ModelConfig, ranks: Ranks, row: StatusRow
    ) -> None:
        self.model_config = model_config
        self.ranks = ranks
        self._row = row
        engine = config.engine
        self.device = resolve_device(engine, ranks.rank)
        if self.device.type == "cuda":
            # kernels start on the thread's current device
            torch.cuda.set_device(self.device)
        self.dtype = resolve_dtype(engine, model_config, self.device)
        kv_dtype, self.kv_dtype_reason = resolve_kv_dtype(
            engine, model_config, self.device, self.dtype
        )
        weight_dtype = engine.weight_dtype
        if weight_dtype != "auto" and self.device.type != "cpu":
            raise ConfigError(
                f"--weight-dtype {weight_dtype} is for --device cpu; allowed on CUDA: auto"
            )
        self.max_length = max_request_length(config, model_config)
        self.num_rows = config.router.running_max_req_size
        self.num_heads = model_config.num_heads // ranks.size
        self.layout = KVLayout(
            num_layers=model_config.num_layers,
            num_kv_heads=max(1, model_config.num_kv_heads // ranks.size),
            head_dim=model_config.head_dim,
            dtype=kv_dtype,
        )
        is_dummy = engine.load_format == "dummy"
        checkpoint = {} if is_dummy else read_checkpoint(engine.model_dir, model_config)
        self._model = load_model_class(model_config.architecture)(
            model_config,
            max_length=self.max_length,
            tp=ranks,
            options=WeightOptions(
                dtype=self.dtype,
                device=self.device,
                int8=weight_dtype == "int8",
                float16=weight_dtype == "float16",
            ),
        )
        loaders = self._model.loaders()
        if is_dummy:
            shapes = expected_tensors(model_config)
            self.weight_bytes = load_dummy_weights(
                loaders, shapes, self.dtype, self.device, self._loaded
            )
        else:
            self.weight_bytes = load_weights(loaders, checkpoint, self._loaded)
        self.uploader = make_uploader(self.device)
        self._workspace = Workspace(self.device)
        self._table = RequestTable.make(self.num_rows, self.max_length, self.device)
        self._graphs: DecodeGraphs | None = None
        # enough to run on padding, which is how the largest step is measured before the pool is
        # sized
        self._pool = KVPool(self.layout, 0, self.device)

    @property
    def num_slots(self) -> int:
        return self._pool.num_slots

    def make_pool(self, num_slots: int) -> None:
        """Replace the pool; nothing cached survives. Raises ConfigError if memory does not hold
        it.
        """
        if self._graphs is not None:
            # they hold addresses in the pool
            self._graphs.forget()
        self._pool = KVPool(self.layout, 0, self.device)
        try:
            self._pool = KVPool(self.layout, num_slots, self.device)
        except RuntimeError as error:
            if is_device_fault(error):
                raise
            size = num_slots * self.layout.bytes_per_token
            raise ConfigError(
                f"no memory for {num_slots} KV cache slots ({size / 2**30:.1f} GiB); set a smaller "
                "--max-total-token-num or --mem-fraction"
            ) from error

    def forward(self, plan: StepPlan) -> torch.Tensor:
        """Bring the request table up to the plan and run the layers: the residual stream [T, E]."""
        inputs = make_step_inputs(
            plan, self._table, self._pool, self._workspace, self.dtype, self.uploader
        )
        hidden: torch.Tensor = self._model.forward(
            inputs.token_ids, inputs.attention, self._row.tick
        )
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: [N, E] rows of the residual stream -> [N, V] float32. A collective."""
        logits: torch.Tensor = self._model.logits(hidden)
        return logits

    def prompt_logits(
        self, hidden: torch.Tensor, plan: StepPlan
    ) -> Iterator[tuple[int, int, torch.Tensor]]:
        """As `prompt_logprobs.prompt_logits`."""
        return prompt_logits(hidden, plan, self.model_config.vocab_size, self.logits)

    def sample_logits(self, hidden: torch.Tensor, plan: StepPlan) -> torch.Tensor:
        """The logits to sample from, [N, V] float32; the head runs once per distinct token."""
        distinct, inverse = np.unique(plan.sample_token_index, return_inverse=True)
        rows, copies = self.uploader.upload(distinct.astype(np.int64), inverse.astype(np.int64))
        logits = self.logits(hidden.index_select(0, rows))
        if np.array_equal(inverse, np.arange(len(distinct))):
            return logits
        return logits.index_select(0, copies)

    def keep_ids(self, plan: StepPlan, ids: torch.Tensor) -> None:
        """Feed the sampled ids [N] to the rows' next decode step."""
        (rows,) = self.uploader.upload(plan.sample_rows.astype(np.int64))
        self._table.last_ids.index_copy_(0, rows, ids)

    def prepare_graphs(self, max_batch_size: int) -> None:
        """Make what recorded decode steps read and write, for batches of up to so many rows."""
        # their own scratch memory: the other one may move when a step is larger than those before
        self._graph_workspace = Workspace(self.device)
        self._graphs = DecodeGraphs(
            self._decode_static,
            graph_sizes(min(max_batch_size, self.num_rows)),
            vocab_size=self.model_config.vocab_size,
            hold_row=self.num_rows,
            device=self.device,
            uploader=self.uploader,
        )

    def record_graphs(self, recorder: Recorder, on_recorded: Callable[[], None]) -> None:
        """Record all decode steps over the present pool, the largest first.

        on_recorded: called before the first and after each.
        """
        assert self._graphs is not None, "prepare_graphs comes first"
        self._graphs.warm_up(recorder, self._pool.padding_slot)
        on_recorded()
        for size in reversed(self._graphs.sizes):
            self._graphs.record(recorder, size)
            on_recorded()

    def forget_graphs(self) -> None:
        """Free what was recorded; `record_graphs` may follow."""
        assert self._graphs is not None, "prepare_graphs comes first"
        self._graphs.forget()

    def replays(self, plan: StepPlan) -> bool:
        """Whether `replay` can carry the plan out, in place of `forward`."""
        return self._graphs is not None and self._graphs.fits(plan)

    def replay(self, plan: StepPlan) -> torch.Tensor:
        """A recorded step: the logits to sample from, [N, V] float32, valid until the next one."""
        assert self._graphs is not None, "nothing is recorded"
        static = self._graphs.replay(plan)
        self._row.tick()
        return static.logits[: len(plan.sample_rows)]

    def _decode_static(self, step: StaticStep) -> None:
        table, pool = self._table, self._pool
        table.req_to_slots.index_put_((step.rows, step.positions), step.slots_int32)
        state = AttentionState(
            positions=step.positions,
            slots=step.slots,
            kv=pool.layers,
            kv_scales=pool.layer_scales,
            req_to_slots=table.req_to_slots,
            prefill=None,
            decode=static_decode_batch(
                step.rows_int32,
                step.seq_lens,
                max_len=self.max_length,
                padding_slot=pool.padding_slot,
            ),
            workspace=self._graph_workspace,
        )
        token_ids = table.last_ids.index_select(0, step.rows)
        hidden = self._model.forward(token_ids, state, _no_tick)
        self._model.logits(hidden, out=step.logits)

    def tick(self) -> None:
        """Show on the status page that work goes on."""
        self._row.tick()

    def _loaded(self, share: float) -> None:
        self._row[Field.LOADED_PERMILLE] = round(share * 1000)
        self._row.tick()


def _no_tick() -> None:
    """A recorded step ticks once, when it is replayed."""
