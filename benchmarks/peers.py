"""The engines that `compare.py` measures besides those of `cattn bench`, and more of NumPy and PyTorch."""

import functools
import importlib
import timeit
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from workloads import (
    ALL,
    SOFTCAP,
    WINDOW,
    Layer,
    Packed,
    additive_of,
    bias_of,
    four_axes,
    mask_of,
    sequences,
    split_heads,
)

from cattn._bench import engines
from cattn._bench.cases import HALF_TYPES, Case, Inputs
from cattn._bench.engines import Cattn, CattnFloat32, Engine, NumpyAttention, Prepared, prepared
from cattn._bench.runs import start_process


def is_plain(case: Case) -> bool:
    """Return whether it is attention over whole arrays, at most causal: what every engine has an operation for."""
    return type(case) is Case


def is_attention(case: Case, *without: str) -> bool:
    """Return whether it is neither packed nor a layer, and has none of these modifiers."""
    return not isinstance(case, (Packed, Layer)) and getattr(case, "modifier", None) not in without


class NumPy(engines.NumPy):
    """Measure NumPy with every modifier, sequence by sequence, and in whole layers."""

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        if is_plain(case) or case.dtype in HALF_TYPES:
            return super().prepare(case, inputs)
        if isinstance(case, Packed):
            return self._packed(case, inputs)
        return self._layer(case, inputs) if isinstance(case, Layer) else self._modified(case, inputs)

    def _modified(self, case: Case, inputs: Inputs) -> Prepared:
        """Prepare a modifier. A window is worked through in blocks of rows, so that it costs what it should."""
        query, key, value = inputs.arrays
        more = {name: inputs.options.get(name) for name in ("softcap", "sinks")}
        out, blocks = np.empty_like(query), [(ALL, ALL)]
        if "window" in inputs.options:
            starts = range(0, case.queries, WINDOW)
            blocks = [(slice(n, n + WINDOW), slice(max(0, n - WINDOW + 1), n + WINDOW)) for n in starts]
            more["scratch"] = np.empty(case.batch * case.heads * 2 * WINDOW**2, query.dtype)
        parts = [
            NumpyAttention(
                query[:, :, rows], key[:, :, keys], value[:, :, keys], out=out[:, :, rows],
                additive=additive_of(case, inputs, rows, keys), **more,
            )
            for rows, keys in blocks
        ]  # fmt: skip
        return prepared(functools.partial(_call_all, parts, out))

    def _packed(self, case: Packed, inputs: Inputs) -> Prepared:
        out = np.empty_like(inputs.arrays[0])
        scratch = np.empty(case.heads * max(case.lengths) ** 2, out.dtype)
        parts = []
        for *arrays, place in sequences(replace(inputs, arrays=(*inputs.arrays[:3], out, *inputs.arrays[3:]))):
            heads = (array.swapaxes(0, 1) for array in arrays)
            parts.append(NumpyAttention(*heads, out=place.swapaxes(0, 1), scratch=scratch))
        return prepared(functools.partial(_call_all, parts, out))

    def _layer(self, case: Layer, inputs: Inputs) -> Prepared:
        x, *projections, w_output = inputs.arrays
        projected, context = [np.empty_like(x) for _ in projections], np.empty_like(x)
        query, key, value, out = (split_heads(array, case.heads) for array in (*projected, context))
        attention = NumpyAttention(query, key, value, out=out)

        def call() -> np.ndarray:
            for weight, array in zip(projections, projected, strict=True):
                np.matmul(x, weight, out=array)
            attention()
            return context @ w_output

        return prepared(call)


def _call_all(parts: list[NumpyAttention], out: np.ndarray) -> np.ndarray:
    for part in parts:
        part()
    return out


class CattnIsa(Engine):
    """Measure cattn with another kernel table, which is picked at import: it lives in a process of its own, which works
    only while this one waits for it. It takes its turn in the rounds like every other engine."""

    package = "cattn"

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
    """Answer each request of `CattnIsa`, at the other end of the connection, until nobody asks any more."""
    try:
        engine = Cattn(threads)
        connection.send("ready")
    except Exception as error:  # whatever it is, the one who waits has to know
        connection.send(error)
        return
    call = None
    while True:
        try:
            verb, *arguments = connection.recv()
        except EOFError:
            return
        try:
            if verb == "prepare":
                (case,) = arguments
                call, answer = engine.prepare(case, case.make_inputs()), None
            elif verb == "timeit":
                answer = call.timer.timeit(*arguments)
            else:
                answer = call.result()
        except Exception as error:
            answer = error
        connection.send(answer)


class PyTorch(engines.PyTorch):
    """Measure PyTorch's function with modifiers as a mask, sequence by sequence, and in whole layers."""

    def supports(self, case: Case) -> bool:
        return getattr(case, "modifier", None) not in ("softcap", "sinks")

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        attend = self.torch.nn.functional.scaled_dot_product_attention
        if isinstance(case, Packed):
            return prepared(functools.partial(self._packed, attend, *self._sequences(inputs)), self.array)
        if isinstance(case, Layer):
            tensors = map(self.tensor, inputs.arrays)
            return prepared(functools.partial(self._layer, attend, case.heads, *tensors), self.array)
        if is_plain(case):
            return super().prepare(case, inputs)
        return self.attend(case, inputs, attn_mask=self.tensor(_mask_or_bias(case, inputs)))

    def _sequences(self, inputs: Inputs):
        """Return the output of packed sequences, and its parts beside those of the inputs."""
        out = np.empty_like(inputs.arrays[0])
        parts = sequences(replace(inputs, arrays=(*inputs.arrays[:3], out, *inputs.arrays[3:])))
        return self.tensor(out), [[self.tensor(array).transpose(0, 1)[None] for array in part] for part in parts]

    def _packed(self, attend, out, parts):
        """Attend sequence by sequence, so that no work goes into padding."""
        for query, key, value, place in parts:
            place[...] = attend(query, key, value)
        return out

    def _layer(self, attend, heads, x, *weights):
        length = len(x)
        parts = ((x @ weight).view(1, length, heads, -1).transpose(1, 2) for weight in weights[:3])
        return attend(*parts).transpose(1, 2).reshape(length, -1) @ weights[3]


class FlexAttention(PyTorch):
    """Measure PyTorch's FlexAttention. It is compiled before the clock runs, which takes seconds and a C++ compiler."""

    name, label = "pytorch-flex", "FlexAttention"

    def __init__(self, threads: int):
        super().__init__(threads)
        self.flex = importlib.import_module("torch.nn.attention.flex_attention")

    def supports(self, case: Case) -> bool:
        lengths = getattr(case, "lengths", ())
        return is_attention(case, "sinks") and not lengths and case.heads == case.kv_heads and case.queries > 1

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        query, key, value = map(self.tensor, inputs.arrays)
        options: dict[str, Any] = {"score_mod": self._score(case, inputs)}
        mask = self._mask(case, inputs)
        if mask is not None:
            options["block_mask"] = self.flex.create_block_mask(mask, None, None, case.queries, case.keys, device="cpu")
        self.torch.compiler.reset()
        attend = self.torch.compile(self.flex.flex_attention)
        return prepared(lambda: attend(query, key, value, **options), self.array)

    def _mask(self, case: Case, inputs: Inputs):
        if "mask" in inputs.options:
            mask = self.tensor(inputs.options["mask"])
            return lambda batch, head, row, key: mask[row, key]
        if "window" in inputs.options:
            return lambda batch, head, row, key: (key <= row) & (row - key < WINDOW)
        if case.causal:
            return lambda batch, head, row, key: key <= row
        return None

    def _score(self, case: Case, inputs: Inputs):
        if "bias" in inputs.options:
            bias = self.tensor(inputs.options["bias"])
            return lambda score, batch, head, row, key: score + bias[row, key]
        if "alibi_slopes" in inputs.options:
            slopes = self.tensor(inputs.options["alibi_slopes"])
            return lambda score, batch, head, row, key: score - slopes[head] * (row - key).abs()
        if "softcap" in inputs.options:
            return lambda score, batch, head, row, key: SOFTCAP * self.torch.tanh(score / SOFTCAP)
        return None


def _mask_or_bias(case: Case, inputs: Inputs) -> np.ndarray:
    """Return the modifiers as one boolean mask if that is enough, else as one additive array."""
    if "bias" in inputs.options or "alibi_slopes" in inputs.options:
        return additive_of(case, inputs)
    return mask_of(case, inputs)


class _OnnxRuntime(Engine):
    """Measure one operator in one session, with its inputs and outputs bound once."""

    package = "onnxruntime"
    keeps_scores = True

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
        """Prepare a call of the operator. `inputs` are in its order, and None if left out. `in_place` maps further
        outputs to the inputs whose memory they share."""
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
    """Measure the operator Attention of ONNX."""

    name, label = "ort-attention", "ORT Attention"

    def supports(self, case: Case) -> bool:
        return is_attention(case, "sinks") and case.dtype in ("float32", "float16")

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        mask = None
        if not is_plain(case) and "softcap" not in inputs.options:
            mask = _mask_or_bias(case, inputs)
        attributes = {"is_causal": int(case.causal and mask is None)}
        if "softcap" in inputs.options:
            attributes["softcap"] = SOFTCAP
        arrays = dict(zip(("query", "key", "value", "mask"), (*inputs.arrays, mask), strict=True))
        return self._bind("Attention", arrays, np.empty_like(inputs.arrays[0]), attributes=attributes)


class OrtMultiHead(_OnnxRuntime):
    """Measure ONNX Runtime's own operator of encoders."""

    name, label = "ort-mha", "ORT MHA"

    def supports(self, case: Case) -> bool:
        return (
            is_attention(case, "softcap", "sinks")
            and case.dtype in ("float32", "float16")
            and case.heads == case.kv_heads
        )

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        query, key, value = inputs.arrays
        query, bias = _joined(query), None
        if not is_plain(case):
            bias = np.ascontiguousarray(four_axes(additive_of(case, inputs)))
        if case.queries > 1 or bias is not None:  # one query is fastest with the keys as they lie in a cache
            key, value = _joined(key), _joined(value)
        arrays = {"query": query, "key": key, "value": value, "bias": None, "padding": None, "attention_bias": bias}
        attributes = {"num_heads": case.heads, "unidirectional": int(case.causal and bias is None)}
        read = _splitter(case)
        return self._bind(
            "MultiHeadAttention", arrays, np.empty_like(query), domain="com.microsoft", attributes=attributes, read=read
        )


class OrtGroupQuery(_OnnxRuntime):
    """Measure the operator of language models: keys and values join a cache, which is updated in place. A single query
    brings the last key along. Otherwise the cache is empty and all keys come with the queries."""

    name, label = "ort-gqa", "ORT GQA"

    def supports(self, case: Case) -> bool:
        decodes = case.queries == 1 and getattr(case, "modifier", None) is None
        fits = case.dtype in ("float32", "float16") and case.head_size % 8 == 0
        return is_attention(case, "mask") and fits and (decodes or case.queries == case.keys)

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        lengths = inputs.options.get("key_lengths", np.full(case.batch, case.keys))
        query, past_key, past_value = inputs.arrays
        key, value = past_key, past_value
        if case.queries == 1:
            entries = np.arange(case.batch)
            key, value = (array[entries, :, lengths - 1][:, :, None] for array in (key, value))
        bias = bias_of(case, inputs)
        query = _joined(query)
        arrays = {
            "query": query,
            "key": _joined(key),
            "value": _joined(value),
            "past_key": past_key.copy(),
            "past_value": past_value.copy(),
            "seqlens_k": (lengths - 1).astype(np.int32),
            "total_sequence_length": np.array(lengths.max(), np.int32),
            "cos_cache": None,
            "sin_cache": None,
            "position_ids": None,
            "attention_bias": None if bias is None else four_axes(bias),
            "head_sink": inputs.options.get("sinks"),
        }
        attributes = {
            "num_heads": case.heads,
            "kv_num_heads": case.kv_heads,
            "causal": int(case.causal or case.queries == 1),
            "local_window_size": WINDOW if "window" in inputs.options else -1,
            "softcap": SOFTCAP if "softcap" in inputs.options else 0.0,
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
    """Return (B, H, L, D) as (B, L, H·D)."""
    batch, heads, length, size = array.shape
    return np.ascontiguousarray(array.swapaxes(1, 2)).reshape(batch, length, heads * size)


def _splitter(case: Case) -> Callable[[np.ndarray], np.ndarray]:
    """Return what turns (B, L, H·D) into (B, H, L, D)."""
    return lambda array: array.reshape(case.batch, case.queries, case.heads, case.head_size).swapaxes(1, 2)


class OpenVino(Engine):
    """Measure OpenVINO in the type of the arrays. A processor without products of float16 takes bfloat16 for them."""

    name, label, package = "openvino", "OpenVINO", "openvino"
    keeps_scores = True
    PRECISIONS: Mapping[str, str] = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}

    def __init__(self, threads: int):
        super().__init__(threads)
        self.openvino = importlib.import_module("openvino")
        self.opset = importlib.import_module("openvino.opset13")
        self.core = self.openvino.Core()

    def supports(self, case: Case) -> bool:
        return is_attention(case, "softcap", "sinks") and case.dtype in self.PRECISIONS and case.heads == case.kv_heads

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        arrays = [*inputs.arrays]
        if not is_plain(case):
            arrays.append(four_axes(_mask_or_bias(case, inputs)))
        tensors = [self.tensor(array) for array in arrays]
        parameters = [self.opset.parameter(tensor.shape, tensor.element_type) for tensor in tensors]
        attention = self.opset.scaled_dot_product_attention(*parameters, causal=is_plain(case) and case.causal)
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
        return prepared(
            lambda: request.infer(share_outputs=True),
            lambda _: request.get_output_tensor(0).data.view(arrays[0].dtype).copy(),
        )

    def tensor(self, array: np.ndarray):
        """Return a tensor in the array's memory."""
        if array.dtype.kind == "V":
            return self.openvino.Tensor(array.view(np.uint16), array.shape, self.openvino.Type.bf16)
        return self.openvino.Tensor(array)


class Jax(Engine):
    """Measure JAX's function, which is compiled for the case before the clock runs."""

    name, label, package = "jax", "JAX", "jax"
    keeps_scores = True

    def __init__(self, threads: int):
        super().__init__(threads)
        self.jax = importlib.import_module("jax")
        self.jax.config.update("jax_platforms", "cpu")

    def supports(self, case: Case) -> bool:
        """Return whether JAX has it. It sums products in float32, which it cannot for float16 on any CPU."""
        return is_attention(case, "softcap", "sinks") and case.dtype in ("float32", "bfloat16")

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        options: dict[str, Any] = {"is_causal": case.causal}
        if "window" in inputs.options:
            options["local_window_size"] = (WINDOW - 1, 0)
        arrays = [np.ascontiguousarray(array.swapaxes(1, 2)) for array in inputs.arrays]
        extras: dict[str, np.ndarray] = {}
        if "key_lengths" in inputs.options:
            extras["key_value_seq_lengths"] = inputs.options["key_lengths"].astype(np.int32)
        if "mask" in inputs.options:
            extras["mask"] = inputs.options["mask"][None, None]
        bias = bias_of(case, inputs)
        if bias is not None:
            extras["bias"] = four_axes(bias)
        arrays = self.jax.device_put(arrays)
        extras = self.jax.device_put(extras)
        attend = self.jax.jit(lambda *args, **kwargs: self.jax.nn.dot_product_attention(*args, **kwargs, **options))
        return prepared(
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
USUAL_ENGINES = ("cattn-portable", *(name for name in ENGINES if name != FlexAttention.name))


def find_engine(name: str) -> Callable[[int], Engine]:
    """Return what makes the engine of that name with a number of threads. "cattn-avx2" is cattn held to that table, and
    so on. ValueError: there is none."""
    if name in ENGINES:
        return ENGINES[name]
    if name.startswith("cattn-"):
        return functools.partial(CattnIsa, isa=name.removeprefix("cattn-"))
    raise ValueError(f"expected some of {', '.join(ENGINES)}, cattn-portable, got {name}")
