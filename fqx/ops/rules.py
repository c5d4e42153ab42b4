from fqx.ir.signature import OpaqueType, Type
from fqx.ops.schema import Call

# Type rules follow.


def adaptive_pool(call: Call) -> Type:
    return OpaqueType()


def addmm(call: Call) -> Type:
    return OpaqueType()


def arange(call: Call) -> Type:
    return OpaqueType()


def attention(call: Call) -> Type:
    return OpaqueType()


def cat(call: Call) -> Type:
    return OpaqueType()


def chunk(call: Call) -> Type:
    return OpaqueType()


def compare(call: Call) -> Type:
    return OpaqueType()


def conv(call: Call) -> Type:
    return OpaqueType()


def conv_transpose(call: Call) -> Type:
    return OpaqueType()


def cumulative(call: Call) -> Type:
    return OpaqueType()


def declared(call: Call) -> Type:
    return OpaqueType()


def div(call: Call) -> Type:
    return OpaqueType()


def einsum(call: Call) -> Type:
    return OpaqueType()


def elementwise(call: Call) -> Type:
    return OpaqueType()


def embedding(call: Call) -> Type:
    return OpaqueType()


def embedding_bag(call: Call) -> Type:
    return OpaqueType()


def expand(call: Call) -> Type:
    return OpaqueType()


def flatten(call: Call) -> Type:
    return OpaqueType()


def full(call: Call) -> Type:
    return OpaqueType()


def gather(call: Call) -> Type:
    return OpaqueType()


def getitem(call: Call) -> Type:
    return OpaqueType()


def index(call: Call) -> Type:
    return OpaqueType()


def index_select(call: Call) -> Type:
    return OpaqueType()


def int_add(call: Call) -> Type:
    return OpaqueType()


def int_floordiv(call: Call) -> Type:
    return OpaqueType()


def int_mod(call: Call) -> Type:
    return OpaqueType()


def int_mul(call: Call) -> Type:
    return OpaqueType()


def int_neg(call: Call) -> Type:
    return OpaqueType()


def int_sub(call: Call) -> Type:
    return OpaqueType()


def interpolate(call: Call) -> Type:
    return OpaqueType()


def linear(call: Call) -> Type:
    return OpaqueType()


def matmul(call: Call) -> Type:
    return OpaqueType()


def pad(call: Call) -> Type:
    return OpaqueType()


def permute(call: Call) -> Type:
    return OpaqueType()


def pixel_shuffle(call: Call) -> Type:
    return OpaqueType()


def pixel_unshuffle(call: Call) -> Type:
    return OpaqueType()


def pool(call: Call) -> Type:
    return OpaqueType()


def recurrent(call: Call) -> Type:
    return OpaqueType()


def reduce(call: Call) -> Type:
    return OpaqueType()


def reduce_to_bool(call: Call) -> Type:
    return OpaqueType()


def reduce_to_index(call: Call) -> Type:
    return OpaqueType()


def repeat(call: Call) -> Type:
    return OpaqueType()


def reshape(call: Call) -> Type:
    return OpaqueType()


def same_type(call: Call) -> Type:
    return OpaqueType()


def select(call: Call) -> Type:
    return OpaqueType()


def size(call: Call) -> Type:
    return OpaqueType()


def slice_axis(call: Call) -> Type:
    return OpaqueType()


def split(call: Call) -> Type:
    return OpaqueType()


def square(call: Call) -> Type:
    return OpaqueType()


def squeeze(call: Call) -> Type:
    return OpaqueType()


def stack(call: Call) -> Type:
    return OpaqueType()


def to_bool(call: Call) -> Type:
    return OpaqueType()


def to_float(call: Call) -> Type:
    return OpaqueType()


def total(call: Call) -> Type:
    return OpaqueType()


def unbind(call: Call) -> Type:
    return OpaqueType()


def unflatten(call: Call) -> Type:
    return OpaqueType()


def unknown(call: Call) -> Type:
    return OpaqueType()


def unsqueeze(call: Call) -> Type:
    return OpaqueType()


def where(call: Call) -> Type:
    return OpaqueType()


def with_dtype(call: Call) -> Type:
    return OpaqueType()
