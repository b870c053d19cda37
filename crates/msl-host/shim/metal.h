// The parts of Metal's standard library that emitted kernels use, for a CPU.
//
// A kernel's text is compiled after this header. Three things differ from Metal: address-space words are
// empty macros, a threadgroup array declared in a function becomes a pointer into the runner's memory, and
// divisions become calls that check the divisor. No system header is included: a kernel compiles in a
// fraction of a second, and no names clash.
//
// Numbers: `half` and `bfloat` hold 16 bits and are rounded to nearest even on every store, as Metal does;
// their arithmetic is float arithmetic with one rounding, which is exact for + - * / (24 >= 2 * 11 + 2). FMA
// contraction is off: only explicit fma is fused.
//
// Threads: each thread of a threadgroup is a fiber that runs until it waits. A waiting thread reports its
// line, so that threads at different barriers are reported instead of released.
#pragma once

namespace msl {

enum class Format : unsigned { Float, Half, Bfloat };

// A matrix in memory.
struct MatrixView {
    const void *address;
    unsigned long stride;
    bool transpose;
    Format format;
};

// The runner's functions, set when a kernel's library is loaded.
struct Runtime {
    void (*fault)(const char *what, long long a, long long b);
    void (*wait_for_threadgroup)(int line);
    void (*wait_for_simdgroup)(int line);
    // 64 bytes that a lane writes and the other lanes of its simdgroup read; double-buffered.
    void *(*lane_slot)(unsigned lane);
    void (*swap_slots)();
    unsigned (*lane)();
    // Threadgroup memory at an offset.
    char *(*threadgroup_memory)(unsigned long offset);
    // Operations on 8 x 8 matrices, which are identified by their addresses on a thread's stack.
    void (*fill)(const void *to, float value);
    void (*load)(const void *to, Format, const MatrixView &from, int line);
    void (*store)(const void *from, const MatrixView &to, int line);
    void (*multiply)(const void *to, Format, const void *a, const void *b, const void *c, int line);
};
extern "C" {
__attribute__((visibility("default"))) const Runtime *msl_runtime = nullptr;
float expf(float); float logf(float); float sinf(float); float cosf(float); float tanf(float); float tanhf(float);
float sinhf(float); float coshf(float); float asinf(float); float acosf(float); float atanf(float);
float asinhf(float); float acoshf(float); float atanhf(float); float powf(float, float); float atan2f(float, float);
float fmodf(float, float);
}
[[noreturn]] inline void fault(const char *what, long long a, long long b) {
    msl_runtime->fault(what, a, b);
    __builtin_unreachable();
}
inline unsigned lane() { return msl_runtime->lane(); }

// Every `/` and `%` of a text becomes a call of these. Metal leaves integer division by zero undefined, and
// processors differ: x86 raises a signal, arm64 gives 0. The same holds for the least integer divided by -1.
template <class T, class U> __attribute__((always_inline)) inline void check_divisor(T a, U b, int line) {
    if constexpr (__is_integral(T) && __is_integral(U)) {
        using R = decltype(a / b);
        if (b == 0) fault("divides the integer %lld by zero in line %lld", (long long)a, line);
        if constexpr (R(-1) < R(0)) {
            if ((R)b == R(-1) && (R)a == (R)(1ul << (8 * sizeof(R) - 1)))
                fault("divides %lld, the least of its type, by -1 in line %lld", (long long)a, line);
        }
    }
}
template <class T, class U>
__attribute__((always_inline)) inline auto quotient(T a, U b, int line = __builtin_LINE()) -> decltype(a / b) {
    check_divisor(a, b, line);
    return a / b;
}
template <class T, class U>
__attribute__((always_inline)) inline auto remainder(T a, U b, int line = __builtin_LINE()) -> decltype(a % b) {
    check_divisor(a, b, line);
    return a % b;
}

template <class T, class U> __attribute__((always_inline)) inline T bits(U value) {
    return __builtin_bit_cast(T, value);
}

// Whether the processor converts halves in one instruction, which matters because most kernels are compiled
// at -O0.
#if defined(__F16C__) || defined(__aarch64__)
#define MSL_HALVES 1
#else
#define MSL_HALVES 0
#endif

// Round to nearest even from float to a format of `exponent` and `mantissa` bits, in its 16 bits.
template <int exponent, int mantissa> inline unsigned short narrow(float value) {
    const unsigned u = bits<unsigned>(value), sign = (u >> 16) & 0x8000u, magnitude = u & 0x7fffffffu;
    const unsigned drop = 23 - mantissa, top = ((1u << exponent) - 1) << mantissa;
    if (magnitude > 0x7f800000u) return (unsigned short)(sign | top | (1u << (mantissa - 1)));
    if (magnitude == 0x7f800000u) return (unsigned short)(sign | top);
    if (exponent == 8) return (unsigned short)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
#if MSL_HALVES
    const __fp16 rounded_by_processor = (__fp16)value;
    return __builtin_bit_cast(unsigned short, rounded_by_processor);
#endif
    const int bias = (1 << (exponent - 1)) - 1, e = (int)(magnitude >> 23) - 127 + bias;
    unsigned significand = magnitude, shift = drop;
    if (e <= 0) {  // Subnormal in the narrow format: the leading one becomes explicit and moves down.
        if (e < -mantissa) return (unsigned short)sign;
        significand = (magnitude & 0x7fffffu) | 0x800000u;
        shift = drop + 1 - e;
    } else {
        significand = magnitude - ((unsigned)(127 - bias) << 23);
    }
    const unsigned half_way = (1u << (shift - 1)) - 1 + ((significand >> shift) & 1u);
    const unsigned rounded = (significand + half_way) >> shift;
    return (unsigned short)(sign | (rounded >= top ? top : rounded));
}

inline float widen_half(unsigned short h) {
#if MSL_HALVES
    return (float)__builtin_bit_cast(__fp16, h);
#endif
    const unsigned sign = (h & 0x8000u) << 16, e = (h >> 10) & 31u, m = h & 0x3ffu;
    if (e == 31) return bits<float>(sign | 0x7f800000u | (m << 13));
    if (e == 0) {
        const float magnitude = (float)m * 0x1p-24f;
        return sign ? -magnitude : magnitude;
    }
    return bits<float>(sign | ((e + 112) << 23) | (m << 13));
}

// A double rounded to float so that rounding the result again to 16 bits rounds the double (to odd).
inline float to_odd(double value) {
    float near = (float)value;
    if ((double)near == value || near != near) return near;
    unsigned u = bits<unsigned>(near);
    if ((u & 0x7fffffffu) == 0x7f800000u) return near;
    const double magnitude = value < 0 ? -value : value, found = near < 0 ? -(double)near : (double)near;
    if (found > magnitude) u -= 1;
    return bits<float>(u | 1u);
}

inline double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }

struct Pointer {
    void *address;
    template <class T> operator T *() const { return (T *)address; }
};

}  // namespace msl

namespace metal {

using uint = unsigned;

struct half {
    unsigned short raw;
    half() = default;
    half(float value) : raw(msl::narrow<5, 10>(value)) {}
    half(double value) : half(msl::to_odd(value)) {}
    half(int value) : half((double)value) {}
    half(unsigned value) : half((double)value) {}
    half(long value) : half((double)value) {}
    half(unsigned long value) : half((double)value) {}
    half(bool value) : half((float)value) {}
    explicit half(short value) : half((float)value) {}
    explicit half(unsigned short value) : half((float)value) {}
    explicit half(signed char value) : half((float)value) {}
    explicit half(unsigned char value) : half((float)value) {}
    operator float() const { return msl::widen_half(raw); }
};

struct bfloat {
    unsigned short raw;
    bfloat() = default;
    bfloat(float value) : raw(msl::narrow<8, 7>(value)) {}
    bfloat(double value) : bfloat(msl::to_odd(value)) {}
    bfloat(int value) : bfloat((double)value) {}
    bfloat(unsigned value) : bfloat((double)value) {}
    bfloat(long value) : bfloat((double)value) {}
    bfloat(unsigned long value) : bfloat((double)value) {}
    bfloat(bool value) : bfloat((float)value) {}
    explicit bfloat(short value) : bfloat((float)value) {}
    explicit bfloat(unsigned short value) : bfloat((float)value) {}
    explicit bfloat(half value) : bfloat((float)value) {}
    operator float() const { return msl::bits<float>((unsigned)raw << 16); }
};

struct uint3 {
    unsigned v[3];
    unsigned operator[](unsigned axis) const { return v[axis]; }
};

// Indices are checked: Metal would read out of bounds.
template <class T, unsigned long N> struct array {
    T elements[N];
    T &operator[](unsigned long index) {
        if (index >= N) msl::fault("index %lld of an array of %lld elements", (long long)index, (long long)N);
        return elements[index];
    }
    const T &operator[](unsigned long index) const { return const_cast<array &>(*this)[index]; }
};

// ---- mathematics. Metal's min and max give the other operand for a NaN.

inline float min(float a, float b) { return __builtin_fminf(a, b); }
inline float max(float a, float b) { return __builtin_fmaxf(a, b); }
inline half min(half a, half b) { return __builtin_fminf(a, b); }
inline half max(half a, half b) { return __builtin_fmaxf(a, b); }
inline bfloat min(bfloat a, bfloat b) { return __builtin_fminf(a, b); }
inline bfloat max(bfloat a, bfloat b) { return __builtin_fmaxf(a, b); }
#define MSL_INTEGER(T)                                                                                                 \
    inline T min(T a, T b) { return a < b ? a : b; }                                                                   \
    inline T max(T a, T b) { return a > b ? a : b; }
MSL_INTEGER(int) MSL_INTEGER(unsigned) MSL_INTEGER(long) MSL_INTEGER(unsigned long) MSL_INTEGER(short)
MSL_INTEGER(unsigned short) MSL_INTEGER(signed char) MSL_INTEGER(unsigned char)
#undef MSL_INTEGER
template <class T> inline T clamp(T value, T low, T high) { return min(max(value, low), high); }

#define MSL_UNARY(name, expression)                                                                                    \
    inline float name(float x) { return expression; }                                                                  \
    inline half name(half h) { const float x = h; return half((float)(expression)); }                                  \
    inline bfloat name(bfloat h) { const float x = h; return bfloat((float)(expression)); }
MSL_UNARY(abs, __builtin_fabsf(x)) MSL_UNARY(exp, msl::expf(x)) MSL_UNARY(log, msl::logf(x))
MSL_UNARY(sin, msl::sinf(x)) MSL_UNARY(cos, msl::cosf(x)) MSL_UNARY(tan, msl::tanf(x))
MSL_UNARY(tanh, msl::tanhf(x)) MSL_UNARY(sinh, msl::sinhf(x)) MSL_UNARY(cosh, msl::coshf(x))
MSL_UNARY(asin, msl::asinf(x)) MSL_UNARY(acos, msl::acosf(x)) MSL_UNARY(atan, msl::atanf(x))
MSL_UNARY(asinh, msl::asinhf(x)) MSL_UNARY(acosh, msl::acoshf(x)) MSL_UNARY(atanh, msl::atanhf(x))
MSL_UNARY(sqrt, __builtin_sqrtf(x)) MSL_UNARY(rsqrt, 1.0f / __builtin_sqrtf(x)) MSL_UNARY(ceil, __builtin_ceilf(x))
MSL_UNARY(floor, __builtin_floorf(x)) MSL_UNARY(trunc, __builtin_truncf(x)) MSL_UNARY(rint, __builtin_rintf(x))
#undef MSL_UNARY
inline int abs(int x) { return x < 0 ? -x : x; }
inline long abs(long x) { return x < 0 ? -x : x; }

#define MSL_BINARY(name, expression)                                                                                   \
    inline float name(float x, float y) { return expression; }                                                         \
    inline half name(half a, half b) { const float x = a, y = b; return half((float)(expression)); }                   \
    inline bfloat name(bfloat a, bfloat b) { const float x = a, y = b; return bfloat((float)(expression)); }
MSL_BINARY(pow, msl::powf(x, y)) MSL_BINARY(atan2, msl::atan2f(x, y)) MSL_BINARY(fmod, msl::fmodf(x, y))
#undef MSL_BINARY

inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline half fma(half a, half b, half c) { return half(msl::fused((float)a, (float)b, (float)c)); }
inline bfloat fma(bfloat a, bfloat b, bfloat c) { return bfloat(msl::fused((float)a, (float)b, (float)c)); }
inline bool isnan(float x) { return x != x; }
inline bool isinf(float x) { return __builtin_fabsf(x) == __builtin_inff(); }
inline unsigned popcount(unsigned x) { return __builtin_popcount(x); }
inline unsigned clz(unsigned x) { return x ? __builtin_clz(x) : 32; }
inline unsigned ctz(unsigned x) { return x ? __builtin_ctz(x) : 32; }

// ---- barriers and fences

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags((int)a | (int)b); }
enum memory_order { memory_order_relaxed, memory_order_seq_cst };
enum thread_scope { thread_scope_thread, thread_scope_threadgroup, thread_scope_device };
inline void atomic_thread_fence(mem_flags, memory_order, thread_scope = thread_scope_device) {}
#define threadgroup_barrier(flags) ((void)(flags), ::msl::msl_runtime->wait_for_threadgroup(__LINE__))
#define simdgroup_barrier(flags) ((void)(flags), ::msl::msl_runtime->wait_for_simdgroup(__LINE__))

// ---- atomics: one fiber runs at a time

template <class T> struct atomic {
    T value;
};
template <class T> inline T atomic_load_explicit(const atomic<T> *a, memory_order) { return a->value; }
template <class T> inline void atomic_store_explicit(atomic<T> *a, T v, memory_order) { a->value = v; }
template <class T> inline T atomic_exchange_explicit(atomic<T> *a, T v, memory_order) {
    const T old = a->value;
    a->value = v;
    return old;
}
template <class T>
inline bool atomic_compare_exchange_weak_explicit(atomic<T> *a, T *expected, T v, memory_order, memory_order) {
    if (a->value == *expected) {
        a->value = v;
        return true;
    }
    *expected = a->value;
    return false;
}
#define MSL_FETCH(name, expression)                                                                                    \
    template <class T> inline T atomic_fetch_##name##_explicit(atomic<T> *a, T v, memory_order) {                      \
        const T old = a->value;                                                                                        \
        a->value = expression;                                                                                         \
        return old;                                                                                                    \
    }
MSL_FETCH(add, old + v) MSL_FETCH(sub, old - v) MSL_FETCH(min, old < v ? old : v) MSL_FETCH(max, old > v ? old : v)
MSL_FETCH(and, old &v) MSL_FETCH(or, old | v) MSL_FETCH(xor, old ^ v)
#undef MSL_FETCH

// ---- exchange within a simdgroup

}  // namespace metal

namespace msl {

// Publishes `value` to the simdgroup and waits for all of its lanes.
template <class T> inline void publish(T value, int line) {
    static_assert(sizeof(T) <= 64, "a lane's slot has 64 bytes");
    msl_runtime->swap_slots();
    __builtin_memcpy(msl_runtime->lane_slot(lane()), &value, sizeof(T));
    msl_runtime->wait_for_simdgroup(line);
}

template <class T> inline T read_lane(unsigned from) {
    T value;
    __builtin_memcpy(&value, msl_runtime->lane_slot(from), sizeof(T));
    return value;
}

template <class T> inline T shuffle(T value, unsigned from, int line) {
    publish(value, line);
    if (from >= 32) fault("lane %lld of a simdgroup of %lld", from, 32);
    return read_lane<T>(from);
}

// Lanes outside the simdgroup have no value: the lane keeps its own, as on Apple GPUs.
template <class T> inline T shuffle_by(T value, long from, int line) {
    publish(value, line);
    return from < 0 || from > 31 ? value : read_lane<T>((unsigned)from);
}

template <class T, class F> inline T reduce(T value, int line, F combine) {
    publish(value, line);
    T result = read_lane<T>(0);
    for (unsigned from = 1; from < 32; ++from) result = combine(result, read_lane<T>(from));
    return result;
}

template <class T, class F> inline T prefix(T value, int start, bool inclusive, int line, F combine) {
    publish(value, line);
    T result = T(start);
    const unsigned end = lane() + (inclusive ? 1u : 0u);
    for (unsigned from = 0; from < end; ++from) result = combine(result, read_lane<T>(from));
    return result;
}

inline unsigned long ballot(bool value, int line) {
    publish(value, line);
    unsigned long votes = 0;
    for (unsigned from = 0; from < 32; ++from) votes |= (unsigned long)read_lane<bool>(from) << from;
    return votes;
}

template <class T> constexpr Format format = Format::Float;
template <> inline constexpr Format format<metal::half> = Format::Half;
template <> inline constexpr Format format<metal::bfloat> = Format::Bfloat;

template <class T> struct Filled {
    T value;
};

// The runner holds the elements. The dialect neither copies a matrix nor (except in casts that no kernel here
// makes) reads a lane's elements: either would not compile.
template <class T> struct matrix {
    int identity;
    matrix() = default;
    matrix(const matrix &) = delete;
    matrix &operator=(const matrix &) = delete;
    matrix &operator=(Filled<T> filled) {
        msl_runtime->fill(this, (float)filled.value);
        return *this;
    }
};

template <class T, class U>
inline void load(matrix<T> &m, const U *base, unsigned long stride, int, bool transpose, int line) {
    msl_runtime->load(&m, format<T>, MatrixView{base, stride, transpose, format<U>}, line);
}

template <class T, class U> inline void store(const matrix<T> &m, U *base, unsigned long stride, int line) {
    msl_runtime->store(&m, MatrixView{base, stride, false, format<U>}, line);
}

// d = a * b + c with fp32 accumulation and one final rounding to d's type.
template <class D, class A, class B, class C>
inline void multiply(matrix<D> &d, const matrix<A> &a, const matrix<B> &b, const matrix<C> &c, int line) {
    msl_runtime->multiply(&d, format<D>, &a, &b, &c, line);
}

}  // namespace msl

namespace metal {

using simdgroup_float8x8 = msl::matrix<float>;
using simdgroup_half8x8 = msl::matrix<half>;
using simdgroup_bfloat8x8 = msl::matrix<bfloat>;

template <class T, int rows, int columns> inline msl::Filled<T> make_filled_simdgroup_matrix(T value) {
    static_assert(rows == 8 && columns == 8, "Apple GPUs have matrices of 8 x 8");
    return {value};
}

#define simd_shuffle(value, lane) ::msl::shuffle(value, lane, __LINE__)
#define simd_shuffle_xor(value, mask) ::msl::shuffle(value, ::msl::lane() ^ (unsigned)(mask), __LINE__)
#define simd_shuffle_up(value, delta) ::msl::shuffle_by(value, (long)::msl::lane() - (long)(delta), __LINE__)
#define simd_shuffle_down(value, delta) ::msl::shuffle_by(value, (long)::msl::lane() + (long)(delta), __LINE__)
#define simd_is_first() (::msl::lane() == 0)
#define simd_ballot(value) ::msl::ballot(value, __LINE__)
#define simd_all(value) (::msl::ballot(value, __LINE__) == 0xfffffffful)
#define simd_any(value) (::msl::ballot(value, __LINE__) != 0)
#define MSL_OP(expression) [](auto a, auto b) -> decltype(a) { return expression; }
#define simd_sum(value) ::msl::reduce(value, __LINE__, MSL_OP(a + b))
#define simd_product(value) ::msl::reduce(value, __LINE__, MSL_OP(a * b))
#define simd_min(value) ::msl::reduce(value, __LINE__, MSL_OP(::metal::min(a, b)))
#define simd_max(value) ::msl::reduce(value, __LINE__, MSL_OP(::metal::max(a, b)))
#define simd_prefix_inclusive_sum(value) ::msl::prefix(value, 0, true, __LINE__, MSL_OP(a + b))
#define simd_prefix_exclusive_sum(value) ::msl::prefix(value, 0, false, __LINE__, MSL_OP(a + b))
#define simd_prefix_inclusive_product(value) ::msl::prefix(value, 1, true, __LINE__, MSL_OP(a * b))
#define simd_prefix_exclusive_product(value) ::msl::prefix(value, 1, false, __LINE__, MSL_OP(a * b))
#define simdgroup_load(m, base, stride, origin, transpose) ::msl::load(m, base, stride, origin, transpose, __LINE__)
#define simdgroup_store(m, base, stride) ::msl::store(m, base, stride, __LINE__)
#define simdgroup_multiply_accumulate(d, a, b, c) ::msl::multiply(d, a, b, c, __LINE__)

}  // namespace metal

namespace msl {

// The built-in arguments of one thread.
struct Thread {
    metal::uint3 thread_position_in_grid, thread_position_in_threadgroup, threadgroup_position_in_grid,
        threadgroups_per_grid;
    unsigned thread_index_in_threadgroup, simdgroup_index_in_threadgroup, thread_index_in_simdgroup,
        threads_per_simdgroup;
};

}  // namespace msl

#define device
#define constant const
#define thread
#define threadgroup
