"""The process that holds vLLM: `python -m upft.sampler.vllm_worker FD PARENT_PID FOLDER`, by `vllm_engine`.

Floor 4; the only file that imports vLLM. Messages come and go as JSON lines over the inherited socket FD, as
vLLM and its libraries write to stdout as they please. It leads a process group of its own and ends all of it
when the parent is gone, however the parent went. Refuses to know where requests come from.
"""

from __future__ import annotations

import os
import queue
import shutil
import signal
import socket
import sys
import threading
from contextlib import suppress
from typing import Any

from upft.sampler.wire import Closed, Wire

_LOOK_S = 1.0
"""How often a worker without messages looks whether its parent lives."""


class _Refused(Exception):
    """What this process cannot do, for the parent to raise: (error class, what, remedy)."""


class _Worker:
    def __init__(self, wire: Wire, parent: int, folder: str) -> None:
        self._wire, self._parent, self._folder = wire, parent, folder
        self._inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._cancelled = 0
        self._engine: Any = None
        self._adapter: Any = None
        self._cpu = True
        # Before vLLM is imported, which takes seconds: the parent may die during them.
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        """Queue messages; end the whole group when the parent is gone.

        The end of the stream shows it at once. A process that the parent forked may hold the parent's end
        open, so its id is looked at too (a dead parent's children are given to another process).
        """
        while True:
            try:
                message = self._wire.receive(_LOOK_S)
            except Closed:
                message, gone = None, True
            else:
                gone = os.getppid() != self._parent
            if gone:
                shutil.rmtree(self._folder, ignore_errors=True)  # the parent no longer can
                os.killpg(os.getpgrp(), signal.SIGKILL)
            if message is None:
                continue
            if message["op"] == "cancel":
                self._cancelled = message["run"]
            self._inbox.put(message)  # a cancellation too: it wakes who waits for more requests

    def serve(self) -> None:
        """Answer messages until told to close."""
        while True:
            message = self._inbox.get()
            try:
                if message["op"] == "open":
                    self._wire.send({"ready": self._open(message)})
                elif message["op"] == "generate":
                    self._generate(message)
                elif message["op"] == "peak":
                    self._wire.send({"peak": self._peak()})
                elif message["op"] == "close":
                    self._close()
                    return
                # requests and cancel: of a call that was given up
            except _Refused as refused:
                kind, what, remedy = refused.args
                self._wire.send({"refused": {"kind": kind, "what": what, "remedy": remedy}})
                return
            except Closed:
                raise
            except Exception as error:
                import traceback

                traceback.print_exc()  # into the log, whose end the parent shows
                self._wire.send({"failed": f"{type(error).__name__}: {error}"})
                return

    def _open(self, m: dict[str, Any]) -> dict[str, Any]:
        from vllm.engine.arg_utils import EngineArgs
        from vllm.platforms import current_platform
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.llm_engine import LLMEngine

        self._cpu = cpu = current_platform.is_cpu()
        if m["accelerator"] == ("gpu" if cpu else "cpu"):
            raise _Refused("engine", f"compute.accelerator={m['accelerator']}, but the vLLM installed here is"
                           f" a {'CPU' if cpu else 'GPU'} build",
                           "use compute.accelerator=auto, install the other build of vLLM, or use the other"
                           " engine (sample.engine and eval.engine)")
        arguments = EngineArgs(
            model=m["model"], revision=m["revision"], trust_remote_code=m["trust_remote_code"],
            dtype=m["dtype"], max_model_len=-1,  # what fits in memory; the parent refuses requests beyond it
            skip_tokenizer_init=True, enable_prefix_caching=True, generation_config="vllm", seed=0,
            enforce_eager=cpu if m["enforce_eager"] is None else m["enforce_eager"],
            gpu_memory_utilization=m["gpu_memory_utilization"],
            tensor_parallel_size=1 if cpu else m["tensor_parallel"], logprobs_mode="processed_logprobs",
            disable_log_stats=True, **self._lora(m))
        try:
            config = arguments.create_engine_config(UsageContext.LLM_CLASS)
        except (ValueError, OSError) as error:
            raise _Refused("model", f"vLLM cannot take {m['model']}: {error}",
                           "check the model's files, or use the other engine (sample.engine and"
                           " eval.engine)") from error
        if cpu:
            import torch

            from upft.sampler.rewinding import RewindingGenerator

            torch.Generator = RewindingGenerator  # type: ignore[misc]  # vLLM makes one for each request
        context = config.model_config.max_model_len
        self._enough = 2 * config.scheduler_config.max_num_seqs
        self._engine = LLMEngine.from_vllm_config(config, UsageContext.LLM_CLASS, disable_log_stats=True)
        if m["adapter"] is not None:
            from vllm.lora.request import LoRARequest

            self._adapter = LoRARequest("adapter", 1, m["adapter"])
            self._engine.add_lora(self._adapter)  # now, so that what is wrong with it shows before the first request
        return {"context": context, "fits": self._engine.model_config.max_model_len, "cpu": cpu}

    def _lora(self, m: dict[str, Any]) -> dict[str, Any]:
        """Engine arguments for the adapter: vLLM makes room for certain ranks only, so the next one up."""
        if m["adapter"] is None:
            return {}
        from typing import get_args

        from vllm.config.lora import MaxLoRARanks

        wide = [r for r in sorted(get_args(MaxLoRARanks)) if r >= m["rank"]]
        if not wide:
            raise _Refused("engine", f"adapter {m['adapter']} has rank {m['rank']}, and vLLM takes ranks up to"
                           f" {max(get_args(MaxLoRARanks))}",
                           "set train.lora.merge=true, or use the other engine (eval.engine=transformers)")
        return {"enable_lora": True, "max_lora_rank": wide[0], "max_loras": 1}

    def _block(self, run: int) -> dict[str, Any] | None:
        """The next block of requests of a call; None once the call is given up."""
        while True:
            message = self._inbox.get()
            if self._cancelled >= run:
                return None
            if message["op"] == "requests" and message["run"] == run:
                return message

    def _generate(self, m: dict[str, Any]) -> None:
        """Step until all requests are done, sending each step's completions; more requests are taken in whenever fewer
        than twice as many are there as run at once."""
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind
        from vllm.utils.torch_utils import set_random_seed

        run, more, took = m["run"], True, 0
        # A call must not depend on the calls before it: what they left in the prefix cache changes how
        # prompts are cut into forward passes, and so the rounding.
        self._engine.reset_prefix_cache()
        set_random_seed(m["seed"] % 2**32)  # NumPy takes 32 bits; no request draws from it, all have a seed
        left: set[int] = set()
        while more or left:
            while more and len(left) < self._enough:
                block = self._block(run)
                if block is None:
                    more = False
                    break
                more, took = not block["last"], took + 1
                for index, (prompt_ids, max_tokens, seed) in enumerate(block["requests"], block["first"]):
                    # The stop ids come from the parent alone (ignore_eos: vLLM would add those it finds).
                    self._engine.add_request(str(index), tokens_input(prompt_ids), SamplingParams(
                        temperature=m["temperature"], top_p=m["top_p"], top_k=m["top_k"], seed=seed,
                        max_tokens=max_tokens, stop_token_ids=m["stop_ids"], ignore_eos=True, detokenize=False,
                        logprobs=0 if m["logprobs"] else None, flat_logprobs=True,
                        output_kind=RequestOutputKind.FINAL_ONLY), lora_request=self._adapter)
                    left.add(index)
            if self._cancelled >= run:
                self._engine.abort_request([str(index) for index in left])
                return
            done = [_finished(out) for out in self._engine.step() if out.finished] if left else []
            left.difference_update(number for number, *_ in done)
            if done or took:
                self._wire.send({"run": run, "done": done, "took": took})
                took = 0

    def _peak(self) -> int:
        """Most memory that has been reserved on one GPU, bytes; 0 on a CPU, and where it cannot be told."""
        if self._engine is None or self._cpu:
            return 0
        try:
            return max(self._engine.collective_rpc(_reserved))  # a GPU of several has a process of its own
        except Exception:  # a figure for the ledger must not cost the engine
            import traceback

            traceback.print_exc()
            return 0

    def _close(self) -> None:
        if self._engine is not None:
            self._engine.engine_core.shutdown()


def _reserved(worker: Any) -> int:
    """Where vLLM computes: most memory that PyTorch has held on this GPU, weights, key-value cache and all, bytes."""
    import torch

    return int(torch.cuda.max_memory_reserved())


def _finished(out: Any) -> tuple[int, list[int], str, int, list[float] | None]:
    """(number, ids, reason, cached prompt tokens, log-probabilities) of a finished request."""
    one = out.outputs[0]
    if one.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"request {out.request_id} ended with finish_reason={one.finish_reason}")
    ids = list(one.token_ids)
    # With logprobs=0 vLLM gives one number a token, that of the token itself.
    scores = None if one.logprobs is None else [float(x) for x in one.logprobs.logprobs]
    assert scores is None or len(scores) == len(ids)
    return int(out.request_id), ids, one.finish_reason, int(out.num_cached_tokens or 0), scores


def main() -> None:
    """Serve the parent until it says close or is gone."""
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(descriptor, False)  # vLLM's own processes must not keep the line open
    with suppress(Closed):
        _Worker(Wire(socket.socket(fileno=descriptor)), parent, sys.argv[3]).serve()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # without the finalisers of a dozen libraries; the operating system frees everything


if __name__ == "__main__":
    main()
