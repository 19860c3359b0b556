"""Which numbers a network is kept in, computes with and answers in; the texts that say so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.runtime import precision
from ssl_jax.runtime.errors import InputError

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("text", "dtypes"),
    [
        ("float32", ("float32", "float32", "float32")),
        ("bfloat16", ("float32", "bfloat16", "float32")),
        ("output=bfloat16,params=float32,compute=bfloat16", ("float32", "bfloat16", "bfloat16")),
    ],
)
def test_texts_name_three_dtypes(text, dtypes):
    parsed = precision.parse(text)
    assert tuple(dtype.name for dtype in parsed) == dtypes


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("bfloat", "unknown config.precision 'bfloat', did you mean 'bfloat16'?"),
        (
            "params=float32",
            "must be float32, bfloat16, or of the form 'params=float32,compute=bfloat16,output",
        ),
        ("params=float32,compute=bfloat16,outputs=float32", "or of the form"),
        ("params=float32,compute=float32,output=float32,output=bfloat16", "or of the form"),
        (
            "params=float32,compute=float16,output=float32",
            "config.precision: compute 'float16', did you mean",
        ),
    ],
)
def test_other_texts_are_refused_in_a_sentence(text, sentence):
    with pytest.raises(InputError) as error:
        precision.parse(text)
    assert sentence in str(error.value)


def test_params_are_cast_and_whole_numbers_are_not():
    tree = {"kernel": jnp.asarray([1 + 2**-9, 3.0]), "count": jnp.int32(300)}
    cast = precision.parse("params=bfloat16,compute=float32,output=float32").cast_params(tree)
    assert (cast["kernel"].dtype, cast["count"].dtype) == (jnp.bfloat16, jnp.int32)
    assert cast["kernel"].tolist() == [1.0, 3.0]  # eight bits of mantissa
    same = precision.parse("bfloat16").cast_params(tree)
    jax.tree.map(np.testing.assert_array_equal, same, tree)
