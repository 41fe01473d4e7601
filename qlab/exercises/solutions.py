"""One right answer to every exercise: look here after you have tried.

Plain JAX, without qlab, so that nothing is hidden.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def memory(parameters: float, bits: float) -> float:
    """Gigabytes (10⁹ bytes) of a model's weights."""
    return parameters * bits / 8 / 1e9


def bits(code_bits: float, group: int, scale_bits: float) -> float:
    """Bits per weight when every `group` weights share a scale."""
    return code_bits + scale_bits / group


def kv_cache(layers: int, kv_heads: int, head_dim: int, tokens: int, bits: float) -> float:
    """Bytes of the keys and values of `tokens` tokens."""
    return 2 * layers * kv_heads * head_dim * tokens * bits / 8


def relative_error(w: jax.Array, w_hat: jax.Array) -> jax.Array:
    """‖w − ŵ‖ / ‖w‖, and 0 where both are zero."""
    size = jnp.linalg.norm(w)
    return jnp.linalg.norm(w - w_hat) / jnp.where(size == 0, 1.0, size)


def scale(w: jax.Array) -> jax.Array:
    """One symmetric INT4 scale a row: (rows, columns) -> (rows, 1)."""
    return jnp.abs(w).max(axis=-1, keepdims=True) / 7


def codes(w: jax.Array, scale: jax.Array) -> jax.Array:
    """The nearest INT4 code of every weight, -8 … 7; 0 where the scale is 0."""
    return jnp.clip(jnp.round(w / jnp.where(scale == 0, 1.0, scale)), -8, 7)


def zero_point(w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Scale and zero point of every row for the codes 0 … 15: two arrays (rows, 1)."""
    low = jnp.minimum(w.min(axis=-1, keepdims=True), 0)
    high = jnp.maximum(w.max(axis=-1, keepdims=True), 0)
    scale = jnp.where(high == low, 1.0, (high - low) / 15)
    return scale, jnp.round(-low / scale)


def group_scale(w: jax.Array, group: int) -> jax.Array:
    """One symmetric INT4 scale for every `group` weights of a row; the last group may be short."""
    rows, columns = w.shape
    padded = jnp.pad(jnp.abs(w), ((0, 0), (0, -columns % group)))  # zeros change no maximum
    return padded.reshape(rows, -1, group).max(axis=-1) / 7


def lost(w: jax.Array) -> jax.Array:
    """The share of every row, (rows,), that symmetric 2-bit rounding makes zero."""
    half_a_step = jnp.abs(w).max(axis=-1, keepdims=True) / 2
    return (jnp.abs(w) <= half_a_step).mean(axis=-1)


def diagonal_u(h: jax.Array) -> jax.Array:
    """U with (diag h)⁻¹ = Uᵀ U, for the H that has h (in,) on its diagonal: (in, in)."""
    return jnp.diag(1 / jnp.sqrt(h))


def push(w: jax.Array, u: jax.Array, j: int, q: jax.Array) -> jax.Array:
    """w (out, in) after column j has become q (out,) and its error has been pushed to the right."""
    error = (w[:, j] - q) / u[j, j]
    return w.at[:, j:].add(-jnp.outer(error, u[j, j:]))


def errors(w: jax.Array, q: jax.Array, u: jax.Array) -> jax.Array:
    """E (out, in) with w − q = E U."""
    return (w - q) @ jnp.linalg.inv(u)


def output_loss(w: jax.Array, q: jax.Array, h: jax.Array) -> jax.Array:
    """E‖(w − q) x‖² for inputs with E[x xᵀ] = h: tr((w − q) h (w − q)ᵀ)."""
    delta = w - q
    return (delta @ h * delta).sum()


def damped(h: jax.Array, damp: float) -> jax.Array:
    """h with damp times the mean of its diagonal added to the diagonal."""
    return h + damp * jnp.diagonal(h).mean() * jnp.eye(len(h))


def scaled_u(u: jax.Array, factor: float) -> jax.Array:
    """The U of factor · H, from the U of H."""
    return u / jnp.sqrt(factor)


def act_order(h: jax.Array) -> jax.Array:
    """The columns' numbers, the largest diagonal entry of h first."""
    return jnp.argsort(-jnp.diagonal(h))


def range_weights(
    w: jax.Array, earlier: jax.Array, present: jax.Array, group_scale: str
) -> jax.Array:
    """The weights of a group on which its range is fitted."""
    pushed = {"static": 0.0, "reference": earlier, "fresh": earlier + present}
    return w - pushed[group_scale]


def salient(size: jax.Array, count: int) -> jax.Array:
    """The numbers of the channels with the largest inputs, the largest first: (count,)."""
    return jnp.argsort(-size)[:count]


def scaled_round(w: jax.Array, s: jax.Array, step: float) -> jax.Array:
    """Q(W diag s) diag s⁻¹ on the grid of whole multiples of step."""
    return jnp.round(w * s / step) * step / s


def awq_scale(size: jax.Array, r: float) -> jax.Array:
    """E|x|^r (in,), centred so that the largest times the smallest is 1."""
    scale = size**r
    return scale / jnp.sqrt(scale.max() * scale.min())


def best_ratio(losses: jax.Array, ratios: jax.Array) -> jax.Array:
    """The ratio with the least sum of losses (linears, n) over the linears."""
    return ratios[losses.sum(axis=0).argmin()]


def fold(gain: jax.Array, w: jax.Array, s: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The gain (in,) divided and the weights' columns (out, in) multiplied by s."""
    return gain / s, w * s


def clip(w: jax.Array, share: float) -> jax.Array:
    """Every row of w cut at ± share · max|w|."""
    limit = share * jnp.abs(w).max(axis=-1, keepdims=True)
    return jnp.clip(w, -limit, limit)


def effective_levels(x: jax.Array) -> jax.Array:
    """How many of the 255 levels of one int8 grid for all of x (tokens, in) each channel spans."""
    step = jnp.abs(x).max() / 127
    return 2 * jnp.round(jnp.abs(x).max(axis=0) / step) + 1


def int8_token(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Codes −127 … 127 (tokens, in) int8 and one scale a token (tokens, 1); zeros stay zeros."""
    scale = jnp.abs(x).max(axis=-1, keepdims=True) / 127
    return jnp.round(x / jnp.where(scale == 0, 1.0, scale)).astype(jnp.int8), scale


def int_matmul(qx: jax.Array, qw: jax.Array, sx: jax.Array, sw: jax.Array) -> jax.Array:
    """qx (tokens, in) times qw (out, in) transposed, summed in int32, times both scales."""
    total = jnp.matmul(qx, qw.T, preferred_element_type=jnp.int32)
    return total * sx * sw.T


def smooth_scales(amax_x: jax.Array, weights: list[jax.Array], alpha: float) -> jax.Array:
    """max|X_j|^α / max|W_j|^(1−α), (in,); the largest weight of all linears that read X."""
    amax_w = jnp.stack([jnp.abs(w).max(axis=0) for w in weights]).max(axis=0)
    return amax_x**alpha / amax_w ** (1 - alpha)


def smooth_fold(
    gain: jax.Array, bias: jax.Array, w: jax.Array, s: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A norm's gain and bias (in,) divided and the weights' columns (out, in) multiplied by s."""
    return gain / s, bias / s, w * s


def outlier_channels(x: jax.Array, threshold: float) -> jax.Array:
    """Which channels of x (tokens, in) have any |x| ≥ threshold: (in,) of True and False."""
    return (jnp.abs(x) >= threshold).any(axis=0)


def mixed_product(x: jax.Array, qw: jax.Array, sw: jax.Array, outlying: jax.Array) -> jax.Array:
    """x Wᵀ with the outlying channels in float and the others in int8: (tokens, out)."""
    inside = jnp.where(outlying, 0.0, x)
    codes, scale = int8_token(inside)
    return int_matmul(codes, qw, scale, sw) + (x - inside) @ (qw * sw).T


def merged(h_a: jax.Array, tokens_a: int, h_b: jax.Array, tokens_b: int) -> jax.Array:
    """E[x xᵀ] over both texts, from that of each and its number of tokens."""
    return (tokens_a * h_a + tokens_b * h_b) / (tokens_a + tokens_b)


def windows_needed(inputs: int, context: int) -> int:
    """The fewest windows with which H (inputs, inputs) can have full rank."""
    return -(-inputs // context)


def paired(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mean of b − a over windows, and its standard error."""
    d = b - a
    return d.mean(), d.std(ddof=1) / jnp.sqrt(len(d))


def verdict(values: jax.Array, bars: jax.Array) -> jax.Array:
    """The sign of every difference that is beyond two standard errors, 0 for the others."""
    return jnp.where(jnp.abs(values) > 2 * bars, jnp.sign(values), 0.0)


def percentile_range(x: jax.Array, q: float) -> tuple[jax.Array, jax.Array]:
    """[min x, max x] cut to [−p, p], with q percent of all |x| up to p."""
    p = jnp.percentile(jnp.abs(x), q)
    return jnp.maximum(x.min(), -p), jnp.minimum(x.max(), p)


def shrink(x: jax.Array, beta: float, p: float) -> jax.Array:
    """sign(x) · max(|x| − |x|^(p−1) / β, 0)."""
    size = jnp.abs(x)
    return jnp.sign(x) * jnp.maximum(size - size ** (p - 1) / beta, 0.0)


def zero_update(codes: jax.Array, w: jax.Array, outliers: jax.Array, scale: jax.Array) -> jax.Array:
    """The best zero point of every group for what is left of w: (groups, n) -> (groups,)."""
    return (codes - (w - outliers) / scale[:, None]).mean(axis=-1)


def unpack_nibbles(raw: jax.Array) -> jax.Array:
    """The 32 codes in 16 bytes of Q4_0: all low nibbles, then all high ones."""
    return jnp.concatenate([raw & 15, raw >> 4])


def q4_0_scale(w: jax.Array) -> jax.Array:
    """The scale with which the weight of largest magnitude becomes -8: (blocks, n) -> (blocks,)."""
    far = jnp.abs(w).argmax(axis=-1, keepdims=True)
    return jnp.take_along_axis(w, far, axis=-1)[:, 0] / -8


def best_scale(w: jax.Array, q: jax.Array, v: jax.Array) -> jax.Array:
    """The s with the least Σ v (w − s q)²; 0 where all codes are 0."""
    size = (v * q**2).sum()
    return (v * w * q).sum() / jnp.where(size == 0, 1.0, size)


def scale_min_k4(raw: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eight scales and eight minima of six bits, from the 12 bytes of Q4_K."""
    first, second, third = raw[:4], raw[4:8], raw[8:]
    scales = jnp.concatenate([first & 63, third & 15 | first >> 6 << 4])
    minima = jnp.concatenate([second & 63, third >> 4 | second >> 6 << 4])
    return scales, minima


def requantize(
    w: jax.Array, d: float, scales: jax.Array, dmin: float, minima: jax.Array
) -> jax.Array:
    """Codes 0 … 15 for the step and the minimum as they are stored; 0 where the step is 0."""
    step, least = d * scales[:, None], dmin * minima[:, None]
    return jnp.clip(jnp.round((w + least) / jnp.where(step == 0, jnp.inf, step)), 0, 15)


def use_more_bits(layers: int) -> jax.Array:
    """Of so many layers those with more bits: first and last eighth, every third one between."""
    i, eighth = jnp.arange(layers), layers // 8
    return (i < eighth) | (i >= 7 * layers // 8) | ((i - eighth) % 3 == 2)


def bits_of_mixture(weights: jax.Array, bits: jax.Array) -> jax.Array:
    """Bits per weight of a whole file, from the size and the bits of every tensor."""
    return (weights * bits).sum() / weights.sum()


def e4m3_value(code: jax.Array) -> jax.Array:
    """The numbers of E4M3 codes: 1 sign, 4 exponent, 3 mantissa bits; 0x7F and 0xFF are NaN."""
    code = jnp.asarray(code, jnp.int32)
    sign = jnp.where(code >= 128, -1.0, 1.0)
    exponent, mantissa = code >> 3 & 15, code & 7
    value = 2.0 ** (exponent - 7) * (1 + mantissa / 8)
    small = 2.0**-6 * mantissa / 8
    return jnp.where(code & 127 == 127, jnp.nan, sign * jnp.where(exponent == 0, small, value))


def to_e4m3(x: jax.Array, scale: float) -> jax.Array:
    """What x becomes in E4M3 under a scale: clipped first, for the cast makes NaN of the rest."""
    clipped = jnp.clip(x / scale, -448, 448)
    return clipped.astype(jnp.float8_e4m3fn).astype(jnp.float32) * scale


def power_scales(w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """MXFP4's scales of blocks (blocks, 32), by floor and by rceil: (blocks,) each."""
    amax = jnp.abs(w).max(axis=-1)
    floor = 2.0 ** (jnp.floor(jnp.log2(amax)) - 2)
    return floor, 2.0 ** jnp.ceil(jnp.log2(amax / 6))


def _fp4_error(w: jax.Array, scale: jax.Array) -> jax.Array:
    """The sum of squared errors of every block under its scale: (blocks, n), (blocks,)."""
    levels = jnp.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    sizes = jnp.abs(w) / scale[:, None]
    nearest = levels[jnp.abs(sizes[:, :, None] - levels).argmin(axis=-1)]
    return ((jnp.abs(w) - nearest * scale[:, None]) ** 2).sum(axis=-1)


def floor_and_rceil(
    w: jax.Array, floor: jax.Array, rceil: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Squared errors of every block under both scales, and which weights floor clips."""
    clipped = jnp.abs(w) > 6 * floor[:, None]
    return _fp4_error(w, floor), _fp4_error(w, rceil), clipped


def four_or_six(w: jax.Array, six: jax.Array, four: jax.Array) -> jax.Array:
    """True for the blocks that end better at 4, (blocks,); of two equally good ones 6 is taken."""
    return _fp4_error(w, four) < _fp4_error(w, six)


def nf4_levels(offset: float) -> jax.Array:
    """The 16 levels of NF4, ascending: quantiles of the normal from `offset` down to the middle."""
    right = jax.scipy.special.ndtri(jnp.linspace(offset, 0.5, 9)[:-1])
    left = -jax.scipy.special.ndtri(jnp.linspace(offset, 0.5, 8)[:-1])
    levels = jnp.sort(jnp.concatenate([left, jnp.zeros(1), right]))
    return levels / levels.max()


def nvfp4_bits(rows: int, columns: int) -> float:
    """Bits per weight of a matrix in NVFP4: codes, E4M3 scales of 16, one float32."""
    return 4 + 8 / 16 + 32 / (rows * columns)


def straight_through(w: jax.Array, scale: float) -> jax.Array:
    """ŵ = s · round(w / s), with the slope of w itself."""

    @jax.custom_vjp
    def rounded(w: jax.Array) -> jax.Array:
        return scale * jnp.round(w / scale)

    def forward(w: jax.Array):
        return rounded(w), None  # nothing has to be remembered

    def backward(_: None, g: jax.Array):
        return (g,)  # ∂ŵ/∂w = 1

    rounded.defvjp(forward, backward)
    return rounded(w)


def clipped_mask(w: jax.Array, scale: float, low: int, high: int) -> jax.Array:
    """1 where w rounds to a code low … high, 0 where it is clipped to an end."""
    code = jnp.round(w / scale)
    return jnp.where((code >= low) & (code <= high), 1.0, 0.0)


def lsq_slope(w: jax.Array, scale: float, low: int, high: int) -> jax.Array:
    """∂ŵ/∂s of every weight: round(w/s) − w/s inside, the end's code beyond."""
    u = w / scale
    return jnp.where(u <= low, low, jnp.where(u >= high, high, jnp.round(u) - u))


def step_gradient(g: jax.Array, slopes: jax.Array, high: int) -> jax.Array:
    """The gradient of a step that all of w share, as LSQ scales it."""
    return (g * slopes).sum() / jnp.sqrt(g.size * high)


def pact_gradient(g: jax.Array, x: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """The gradients of x, as x is, and of α, a number, through clip(x, 0, α)."""
    return jnp.where((x > 0) & (x < alpha), g, 0.0), jnp.where(x >= alpha, g, 0.0).sum()


def absmean_ternary(w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Codes −1, 0, 1 and the one scale of a matrix, its mean |w|, at least 1e-5."""
    scale = jnp.maximum(jnp.abs(w).mean(), 1e-5)
    return jnp.clip(jnp.round(w / scale), -1, 1), scale


def distillation(student: jax.Array, teacher: jax.Array, temperature: float) -> jax.Array:
    """T² · KL(teacher ‖ student) at temperature T, the mean over tokens; logits (tokens, vocab)."""
    log_s = jax.nn.log_softmax(student / temperature)
    log_t = jax.nn.log_softmax(teacher / temperature)
    return temperature**2 * (jnp.exp(log_t) * (log_t - log_s)).sum(axis=-1).mean()


def decode_bytes(weights: float, bits: float, tokens: int, cached: int, cache_bits: float) -> float:
    """Bytes that one decode step of one sequence reads: all weights, and its cache."""
    return weights * bits / 8 + tokens * cached * cache_bits / 8


def compute_bound_batch(bits: float, bandwidth: float, peak: float) -> float:
    """The batch at which reading a weight once takes as long as using it for every sequence."""
    reading = bits / 8 / bandwidth  # seconds a weight
    using = 2 / peak  # seconds a weight and sequence: one multiplication, one addition
    return reading / using


def cache_crossover(weights: float, bits: float, cached: int, cache_bits: float) -> float:
    """Tokens, of all sequences together, whose cache has as many bytes as the weights."""
    return weights * bits / (cached * cache_bits)


def speedup_bound(weights: float, bits: float, rest: float) -> float:
    """How many times fewer bytes a step reads than with 16 bits, `rest` bytes staying as they
    are.
    """
    return (weights * 16 / 8 + rest) / (weights * bits / 8 + rest)


def kernel_nibbles(packed: jax.Array) -> jax.Array:
    """Signed codes (in, out) of bytes (in/2, out): row 2r in the low nibble, 2r + 1 in the high."""
    nibbles = jnp.stack([packed & 15, packed >> 4], axis=1).astype(jnp.int32)  # (in/2, 2, out)
    signed = jnp.where(nibbles > 7, nibbles - 16, nibbles)
    return signed.reshape(-1, packed.shape[1])


def w4_tile(x: jax.Array, codes: jax.Array, scale: jax.Array) -> jax.Array:
    """x (tokens, in) times codes (in, out), a scale (groups, out) for each group of inputs."""
    groups, out = scale.shape
    w = codes.reshape(groups, -1, out) * scale[:, None]  # (groups, inputs of a group, out)
    return x @ w.reshape(-1, out)


def dequantize_tile(codes_ref, scale_ref, w_ref) -> None:
    """A Pallas kernel: codes (in, out) int8 and scales (groups, out) become weights (in, out)."""
    codes, scale = codes_ref[...].astype(jnp.float32), scale_ref[...]
    groups, out = scale.shape
    w_ref[...] = (codes.reshape(groups, -1, out) * scale[:, None]).reshape(-1, out)
