"""Open a pickled scikit-learn preprocessor without giving the pickle a say in what runs.

A pickle names the callables that rebuild its objects. Here only exact names pass: scikit-learn's transformers that
hold fitted arrays, and what numpy needs to rebuild an array. Everything else is refused before it is imported.
"""

from __future__ import annotations

import importlib
import io
import pickle
from pathlib import Path
from typing import Any

from carla_policy.errors import ArtifactError

_PREPROCESSING = "sklearn.preprocessing._data"
_ARRAYS = ("numpy._core.multiarray", "numpy.core.multiarray")
ALLOWED = frozenset(
    {
        ("carla_policy.normalization", "ObservationNormalizer"),
        (_PREPROCESSING, "StandardScaler"),
        (_PREPROCESSING, "MinMaxScaler"),
        (_PREPROCESSING, "MaxAbsScaler"),
        (_PREPROCESSING, "RobustScaler"),
        (_PREPROCESSING, "Normalizer"),
        (_PREPROCESSING, "PowerTransformer"),
        (_PREPROCESSING, "QuantileTransformer"),
        ("sklearn.preprocessing._polynomial", "PolynomialFeatures"),
        # How a ColumnTransformer keeps "passthrough"; a function inside of it would have to pass this list as well.
        ("sklearn.preprocessing._function_transformer", "FunctionTransformer"),
        ("sklearn.decomposition._pca", "PCA"),
        ("sklearn.pipeline", "Pipeline"),
        ("sklearn.pipeline", "FeatureUnion"),
        ("sklearn.compose._column_transformer", "ColumnTransformer"),
        ("builtins", "slice"),
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        *((module, name) for module in _ARRAYS for name in ("_reconstruct", "scalar")),
        *((module, "_frombuffer") for module in ("numpy._core.numeric", "numpy.core.numeric")),
    }
)


class _AllowListUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise ArtifactError(f"it refers to {module}.{name}, which no preprocessor may")
        return getattr(importlib.import_module(module), name)


def load_preprocessor_pickle(path: Path) -> Any:
    """The transformer in `path`; `ArtifactError` names the file and what it may not contain."""
    stream = io.BytesIO(path.read_bytes())
    try:
        transformer = _AllowListUnpickler(stream).load()
    except ArtifactError as error:
        raise ArtifactError(f"{path.name}: {error}; only fitted scikit-learn transformers are accepted") from None
    except Exception as error:  # a broken stream may raise whatever its opcodes run into
        raise ArtifactError(f"{path.name}: not a readable pickle: {type(error).__name__}: {error}") from None
    if stream.read(1):
        raise ArtifactError(f"{path.name}: there is data behind the pickled object")
    if not callable(getattr(transformer, "transform", None)):
        raise ArtifactError(f"{path.name}: expected a transformer, got {type(transformer).__name__}")
    return transformer
