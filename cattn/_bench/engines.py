"""Engines that compute attention on the CPU, behind one face.

An engine imports its library when it is made (ImportError: not installed) and is limited to a number of threads.
Arrays are brought into its own layout and memory before the clock runs.
"""

import functools
import importlib
import itertools
import timeit
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cattn._bench.cases import HALF_TYPES, SOFTCAP, WINDOW, Case
from cattn._bench.inputs import Inputs, additive_block, bias_block, make_inputs, mask_block
from cattn._bench.numpy_attention import numpy_call
from cattn._bench.process import start_process
from cattn._bench.timing import Timer

ALL = slice(None)


@dataclass(frozen=True)
class Prepared:
    """A case, ready to run: what is timed, and its answer in cattn's layout."""

    timer: Timer
    result: Callable[[], np.ndarray]


def _prepared(call: Callable[[], Any], read: Callable[[Any], np.ndarray] = np.asarray) -> Prepared:
    return Prepared(timeit.Timer(call), lambda: read(call()))


class Engine:
    name: str
    label: str
    package: str
    keeps_scores = True  # in memory, queries × keys of all heads

    def __init__(self, threads: int):
        self.threads = threads

    @property
    def version(self) -> str:
        return importlib.import_module(self.package).__version__.partition("-")[0]

    def supports(self, case: Case) -> bool:
        return True

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        raise NotImplementedError

    def close(self) -> None:
        """Stop what the engine has started."""


class NumPy(Engine):
    name, label, package = "numpy", "NumPy", "numpy"

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        return _prepared(numpy_call(case, inputs))


class Cattn(Engine):
    name, label, package = "cattn", "cattn", "cattn"
    keeps_scores = False

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        return _prepared(cattn_call(case, inputs, self.threads))


def cattn_call(case: Case, inputs: Inputs, num_threads: int) -> Callable[[], np.ndarray]:
    """cattn's answer to a case. The thread count is set for the process, as a user's program would."""
    import cattn

    cattn.set_num_threads(num_threads)
    arrays = (inputs.query, inputs.key, inputs.value)
    if case.kind == "packed":
        return functools.partial(cattn.attention_varlen, *arrays, inputs.indptr, inputs.indptr)
    if case.kind == "self_attention":
        return functools.partial(cattn.self_attention, inputs.query, *inputs.weights, num_heads=case.heads)
    return functools.partial(cattn.attention, *arrays, **inputs.options)


class CattnFloat32(Cattn):
    """cattn on the same numbers in float32: what a half type is worth."""

    name, label = "cattn-float32", "cattn float32"

    def supports(self, case: Case) -> bool:
        return case.dtype in HALF_TYPES

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        def wide(array: np.ndarray) -> np.ndarray:
            return array.astype(np.float32)

        query, key, value = map(wide, (inputs.query, inputs.key, inputs.value))
        weights = tuple(map(wide, inputs.weights))
        return super().prepare(case, replace(inputs, query=query, key=key, value=value, weights=weights))


class CattnIsa(Engine):
    """cattn with another kernel table. The table is picked at import, so it lives in a process of its own, which works
    only while this one waits for it: it takes its turn in the rounds like every other engine."""

    package = "cattn"
    keeps_scores = False

    def __init__(self, threads: int, isa: str):
        super().__init__(threads)
        self.name, self.label = f"cattn-{isa}", f"cattn {isa}"
        self._process, self._connection = start_process(_serve, threads, environment={"CATTN_ISA": isa})
        try:
            self._answer()
        except (EOFError, RuntimeError) as error:
            raise ImportError(f"its process ended {error}".rstrip()) from error

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        self._ask("prepare", case)
        return Prepared(self, lambda: self._ask("result"))

    def timeit(self, number: int) -> float:
        return self._ask("timeit", number)

    def close(self) -> None:
        self._connection.close()
        self._process.join()

    def _ask(self, *request: object) -> Any:
        self._connection.send(request)
        return self._answer()

    def _answer(self) -> Any:
        answer = self._connection.recv()
        if isinstance(answer, Exception):
            raise RuntimeError(f"{type(answer).__name__}: {answer}")
        return answer


def _serve(connection: Any, threads: int) -> None:
    """The other end of `CattnIsa`: answers each request, until nobody asks any more."""
    try:
        engine = Cattn(threads)
        connection.send("ready")
    except Exception as error:  # whatever it is, the one who waits has to know
        connection.send(error)
        return
    prepared = None
    while True:
        try:
            verb, *arguments = connection.recv()
        except EOFError:
            return
        try:
            if verb == "prepare":
                (case,) = arguments
                prepared = engine.prepare(case, make_inputs(case))
                answer = None
            elif verb == "timeit":
                answer = prepared.timer.timeit(*arguments)
            else:
                answer = prepared.result()
        except Exception as error:
            answer = error
        connection.send(answer)


class PyTorch(Engine):
    name, label, package = "pytorch", "PyTorch", "torch"
    keeps_scores = False

    def __init__(self, threads: int):
        super().__init__(threads)
        self.torch = importlib.import_module("torch")
        self.torch.set_num_threads(threads)
        self._mode = self.torch.inference_mode()
        self._mode.__enter__()  # for the rest of the process: entering it each time would be timed

    def supports(self, case: Case) -> bool:
        return not case.modifiers & {"softcap", "sinks"}

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        attend = self.torch.nn.functional.scaled_dot_product_attention
        query, key, value = map(self._tensor, (inputs.query, inputs.key, inputs.value))
        if case.kind == "packed":
            return _prepared(lambda: self._packed(attend, query, key, value, inputs.indptr.tolist()), self._array)
        if case.kind == "self_attention":
            weights = [self._tensor(weight) for weight in inputs.weights]
            return _prepared(lambda: self._self_attention(attend, query, weights, case.heads), self._array)
        options: dict[str, Any] = {}
        if case.kv_heads != case.heads:
            options["enable_gqa"] = True
        if case.is_plain:
            options["is_causal"] = case.causal
        else:
            options["attn_mask"] = self._tensor(_mask_or_bias(case, inputs))
        return _prepared(lambda: attend(query, key, value, **options), self._array)

    def _packed(self, attend, query, key, value, indptr):
        """Sequence by sequence: no work goes into padding."""
        out = self.torch.empty_like(query)
        for start, stop in itertools.pairwise(indptr):
            parts = (tensor[start:stop].transpose(0, 1)[None] for tensor in (query, key, value))
            out[start:stop] = attend(*parts)[0].transpose(0, 1)
        return out

    def _self_attention(self, attend, x, weights, heads):
        length = len(x)
        parts = ((x @ weight).view(1, length, heads, -1).transpose(1, 2) for weight in weights[:3])
        return attend(*parts).transpose(1, 2).reshape(length, -1) @ weights[3]

    def _tensor(self, array: np.ndarray):
        if array.dtype.kind == "V":
            return self.torch.from_numpy(array.view(np.int16)).view(self.torch.bfloat16)
        return self.torch.from_numpy(array)

    def _array(self, tensor) -> np.ndarray:
        return (tensor.float() if tensor.dtype == self.torch.bfloat16 else tensor).numpy()


class FlexAttention(PyTorch):
    """PyTorch's FlexAttention, compiled for the case before the clock runs (seconds, and a C++ compiler)."""

    name, label = "pytorch-flex", "FlexAttention"

    def __init__(self, threads: int):
        super().__init__(threads)
        self.flex = importlib.import_module("torch.nn.attention.flex_attention")

    def supports(self, case: Case) -> bool:
        plain = case.kind == "attention" and not case.lengths and case.heads == case.kv_heads and case.queries > 1
        return plain and case.modifiers <= {"causal", "window", "alibi", "softcap", "bias", "mask"}

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        query, key, value = map(self._tensor, (inputs.query, inputs.key, inputs.value))
        options: dict[str, Any] = {"score_mod": self._score(case, inputs)}
        mask = self._mask(case, inputs)
        if mask is not None:
            options["block_mask"] = self.flex.create_block_mask(mask, None, None, case.queries, case.keys, device="cpu")
        self.torch.compiler.reset()
        attend = self.torch.compile(self.flex.flex_attention)
        return _prepared(lambda: attend(query, key, value, **options), self._array)

    def _mask(self, case: Case, inputs: Inputs):
        if "mask" in case.modifiers:
            mask = self._tensor(inputs.options["mask"])
            return lambda batch, head, row, key: mask[row, key]
        if "window" in case.modifiers:
            return lambda batch, head, row, key: (key <= row) & (row - key < WINDOW)
        if case.causal:
            return lambda batch, head, row, key: key <= row
        return None

    def _score(self, case: Case, inputs: Inputs):
        if "bias" in case.modifiers:
            bias = self._tensor(inputs.options["bias"])
            return lambda score, batch, head, row, key: score + bias[row, key]
        if "alibi" in case.modifiers:
            slopes = self._tensor(inputs.options["alibi_slopes"])
            return lambda score, batch, head, row, key: score - slopes[head] * (row - key).abs()
        if "softcap" in case.modifiers:
            return lambda score, batch, head, row, key: SOFTCAP * self.torch.tanh(score / SOFTCAP)
        return None


def _mask_or_bias(case: Case, inputs: Inputs) -> np.ndarray:
    """The modifiers as one boolean mask where that is enough, else as one additive array."""
    if "bias" in inputs.options or "alibi_slopes" in inputs.options:
        return additive_block(case, inputs, ALL, ALL)
    return mask_block(case, inputs, ALL, ALL)


class _OnnxRuntime(Engine):
    """One operator, one session, its inputs and outputs bound once."""

    package = "onnxruntime"

    def __init__(self, threads: int):
        super().__init__(threads)
        self.onnx = importlib.import_module("onnx")
        self.ort = importlib.import_module("onnxruntime")
        self.ort.set_default_logger_severity(4)

    def _bind(
        self,
        operator: str,
        inputs: Mapping[str, np.ndarray | None],
        out: np.ndarray,
        *,
        domain: str = "",
        attributes: Mapping[str, object],
        in_place: Mapping[str, str] | None = None,
        read: Callable[[np.ndarray], np.ndarray] = np.asarray,
    ) -> Prepared:
        """`inputs` in the operator's order, None where left out; `in_place` maps further outputs to the inputs whose
        memory they share."""
        helper, in_place = self.onnx.helper, in_place or {}
        given = {name: array for name, array in inputs.items() if array is not None}
        names = [name if array is not None else "" for name, array in inputs.items()]
        while names[-1] == "":
            names.pop()

        def info(name: str, array: np.ndarray):
            return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)

        results = [info("out", out), *(info(name, given[source]) for name, source in in_place.items())]
        node = helper.make_node(operator, names, ["out", *in_place], domain=domain, **attributes)
        graph = helper.make_graph([node], operator, [info(*item) for item in given.items()], results)
        opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=11)

        options = self.ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        session = self.ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        values = {name: self.ort.OrtValue.ortvalue_from_numpy(array) for name, array in (given | {"out": out}).items()}
        binding = session.io_binding()
        for name in given:
            binding.bind_ortvalue_input(name, values[name])
        for name, source in {"out": "out", **in_place}.items():
            binding.bind_ortvalue_output(name, values[source])

        def result() -> np.ndarray:
            session.run_with_iobinding(binding)
            return read(values["out"].numpy())

        return Prepared(timeit.Timer(lambda: session.run_with_iobinding(binding)), result)


class OrtAttention(_OnnxRuntime):
    name, label = "ort-attention", "ORT Attention"

    def supports(self, case: Case) -> bool:
        return case.kind == "attention" and case.dtype in ("float32", "float16") and "sinks" not in case.modifiers

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        mask = None
        if not case.modifiers <= {"causal", "softcap"} or case.lengths:
            mask = _mask_or_bias(case, inputs)
        attributes = {"is_causal": int(case.causal and mask is None)}
        if "softcap" in case.modifiers:
            attributes["softcap"] = SOFTCAP
        arrays = {"query": inputs.query, "key": inputs.key, "value": inputs.value, "mask": mask}
        return self._bind("Attention", arrays, np.empty_like(inputs.query), attributes=attributes)


class OrtMultiHead(_OnnxRuntime):
    name, label = "ort-mha", "ORT MHA"

    def supports(self, case: Case) -> bool:
        return (
            case.kind == "attention"
            and case.dtype in ("float32", "float16")
            and case.heads == case.kv_heads
            and not case.modifiers & {"softcap", "sinks"}
        )

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        query = _joined(inputs.query)
        bias = None
        if not case.is_plain:
            bias = additive_block(case, inputs, ALL, ALL)
            bias = np.ascontiguousarray(bias.reshape((1,) * (4 - bias.ndim) + bias.shape))
        key, value = inputs.key, inputs.value
        if case.queries > 1 or bias is not None:  # one query is fastest with the keys as they lie in a cache
            key, value = _joined(key), _joined(value)
        arrays = {"query": query, "key": key, "value": value, "bias": None, "padding": None, "attention_bias": bias}
        attributes = {"num_heads": case.heads, "unidirectional": int(case.causal and bias is None)}
        read = _splitter(case)
        return self._bind(
            "MultiHeadAttention", arrays, np.empty_like(query), domain="com.microsoft", attributes=attributes, read=read
        )


class OrtGroupQuery(_OnnxRuntime):
    """The operator of language models: keys and values join a cache, which is updated in place. A single query brings
    the last key along; otherwise the cache is empty and all keys come with the queries."""

    name, label = "ort-gqa", "ORT GQA"

    def supports(self, case: Case) -> bool:
        decodes = case.queries == 1 and not case.modifiers
        prefills = case.queries == case.keys and "mask" not in case.modifiers
        fits = case.dtype in ("float32", "float16") and case.head_size % 8 == 0
        return case.kind == "attention" and fits and (decodes or prefills)

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        lengths = np.array(case.lengths or (case.keys,) * case.batch)
        key, value = inputs.key, inputs.value
        if case.queries == 1:
            entries = np.arange(case.batch)
            key, value = (array[entries, :, lengths - 1][:, :, None] for array in (key, value))
        bias = bias_block(case, inputs, ALL, ALL)
        if bias is not None:
            bias = bias.reshape((1,) * (4 - bias.ndim) + bias.shape)
        query = _joined(inputs.query)
        arrays = {
            "query": query,
            "key": _joined(key),
            "value": _joined(value),
            "past_key": inputs.key.copy(),
            "past_value": inputs.value.copy(),
            "seqlens_k": (lengths - 1).astype(np.int32),
            "total_sequence_length": np.array(lengths.max(), np.int32),
            "cos_cache": None,
            "sin_cache": None,
            "position_ids": None,
            "attention_bias": bias,
            "head_sink": inputs.options.get("sinks"),
        }
        attributes = {
            "num_heads": case.heads,
            "kv_num_heads": case.kv_heads,
            "causal": int(case.causal or case.queries == 1),
            "local_window_size": WINDOW if "window" in case.modifiers else -1,
            "softcap": SOFTCAP if "softcap" in case.modifiers else 0.0,
        }
        return self._bind(
            "GroupQueryAttention",
            arrays,
            np.empty_like(query),
            domain="com.microsoft",
            attributes=attributes,
            in_place={"present_key": "past_key", "present_value": "past_value"},
            read=_splitter(case),
        )


def _joined(array: np.ndarray) -> np.ndarray:
    """(B, H, L, D) → (B, L, H·D)"""
    batch, heads, length, size = array.shape
    return np.ascontiguousarray(array.swapaxes(1, 2)).reshape(batch, length, heads * size)


def _splitter(case: Case) -> Callable[[np.ndarray], np.ndarray]:
    """(B, L, H·D) → (B, H, L, D)"""
    return lambda array: array.reshape(case.batch, case.queries, case.heads, case.head_size).swapaxes(1, 2)


class OpenVino(Engine):
    """Half types are asked for as such; where the processor has no products of float16 it takes bfloat16 for them."""

    name, label, package = "openvino", "OpenVINO", "openvino"
    PRECISIONS: Mapping[str, str] = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}

    def __init__(self, threads: int):
        super().__init__(threads)
        self.openvino = importlib.import_module("openvino")
        self.opset = importlib.import_module("openvino.opset13")
        self.core = self.openvino.Core()

    def supports(self, case: Case) -> bool:
        return (
            case.kind == "attention"
            and case.dtype in self.PRECISIONS
            and case.heads == case.kv_heads
            and not case.modifiers & {"softcap", "sinks"}
        )

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        arrays = [inputs.query, inputs.key, inputs.value]
        if not case.is_plain:
            mask = _mask_or_bias(case, inputs)
            arrays.append(mask.reshape((1,) * (4 - mask.ndim) + mask.shape))
        tensors = [self._tensor(array) for array in arrays]
        parameters = [self.opset.parameter(tensor.shape, tensor.element_type) for tensor in tensors]
        attention = self.opset.scaled_dot_product_attention(*parameters, causal=case.is_plain and case.causal)
        config = {
            "INFERENCE_NUM_THREADS": self.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": self.PRECISIONS[case.dtype],
            "ENABLE_CPU_PINNING": False,  # the process is already where it should be
        }
        model = self.openvino.Model([attention.output(0)], parameters, "attention")
        request = self.core.compile_model(model, "CPU", config).create_infer_request()
        for index, tensor in enumerate(tensors):
            request.set_input_tensor(index, tensor)
        # The bits of bfloat16 come as those of float16.
        return _prepared(
            lambda: request.infer(share_outputs=True),
            lambda _: request.get_output_tensor(0).data.view(inputs.query.dtype).copy(),
        )

    def _tensor(self, array: np.ndarray):
        if array.dtype.kind == "V":
            return self.openvino.Tensor(array.view(np.uint16), array.shape, self.openvino.Type.bf16)
        return self.openvino.Tensor(array)


class Jax(Engine):
    name, label, package = "jax", "JAX", "jax"

    def __init__(self, threads: int):
        super().__init__(threads)
        self.jax = importlib.import_module("jax")
        self.jax.config.update("jax_platforms", "cpu")

    def supports(self, case: Case) -> bool:
        """Its products are summed in float32, which it has for float16 on no CPU."""
        return (
            case.kind == "attention"
            and case.dtype in ("float32", "bfloat16")
            and not case.modifiers & {"softcap", "sinks"}
        )

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        options: dict[str, Any] = {"is_causal": case.causal}
        if "window" in case.modifiers:
            options["local_window_size"] = (WINDOW - 1, 0)
        arrays = [np.ascontiguousarray(array.swapaxes(1, 2)) for array in (inputs.query, inputs.key, inputs.value)]
        extras: dict[str, np.ndarray] = {}
        if case.lengths:
            extras["key_value_seq_lengths"] = np.array(case.lengths, np.int32)
        if "mask" in case.modifiers:
            extras["mask"] = inputs.options["mask"][None, None]
        bias = bias_block(case, inputs, ALL, ALL)
        if bias is not None:
            extras["bias"] = bias.reshape((1,) * (4 - bias.ndim) + bias.shape)
        arrays = self.jax.device_put(arrays)
        extras = self.jax.device_put(extras)
        attend = self.jax.jit(lambda *args, **kwargs: self.jax.nn.dot_product_attention(*args, **kwargs, **options))
        return _prepared(
            lambda: attend(*arrays, **extras).block_until_ready(), lambda out: np.asarray(out).swapaxes(1, 2)
        )


ENGINES: Mapping[str, type[Engine]] = {
    engine.name: engine
    for engine in (
        Cattn,
        CattnFloat32,
        NumPy,
        PyTorch,
        FlexAttention,
        OrtAttention,
        OrtMultiHead,
        OrtGroupQuery,
        OpenVino,
        Jax,
    )
}
# All but FlexAttention, which takes a compiler and seconds a case.
USUAL_ENGINES = tuple(name for name in ENGINES if name != FlexAttention.name)


def make_engine(name: str, threads: int) -> Engine:
    """The engine of that name; "cattn-" and an instruction set is cattn forced to it. ImportError: not installed."""
    if name in ENGINES:
        return ENGINES[name](threads)
    if name.startswith("cattn-"):
        return CattnIsa(threads, name.removeprefix("cattn-"))
    raise ValueError(f"expected engines among {', '.join(ENGINES)}, cattn-portable and the like; got {name!r}")
