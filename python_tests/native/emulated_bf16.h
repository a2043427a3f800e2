// A Bf16Operand without instructions for it, included by csrc/cpu/operands.h in a test build (LDREG_TEST_OPERAND): two
// bf16 a word, rounded to nearest, multiplied as AVX-512's dpbf16 does, denormals flushed. One lane after the other.
#define LDREG_EMULATED_BF16 1

struct Bf16Operand {
  static constexpr int per_step = 2;
  static constexpr bool integer = false;
  using Sum = Floats;

  static uint32_t rounded_bits(float f) {
    uint32_t bits;
    std::memcpy(&bits, &f, sizeof bits);
    return (bits + 0x7fffu + (bits >> 16 & 1)) & 0xffff0000u;
  }
  static float number(uint32_t bits) {
    float f;
    std::memcpy(&f, &bits, sizeof f);
    return flushed(f);
  }
  static float flushed(float f) { return std::fabs(f) < std::numeric_limits<float>::min() ? 0.0f : f; }

  static Floats round(const Floats& v) {
    Floats r;
    for (int l = 0; l < kLanes; ++l) {
      const uint32_t bits = rounded_bits(v[l]);
      float f;
      std::memcpy(&f, &bits, sizeof f);
      r[l] = f;
    }
    return r;
  }
  static void store(const Floats& v, void* out) {
    uint16_t narrow[kLanes];
    for (int l = 0; l < kLanes; ++l) narrow[l] = uint16_t(rounded_bits(v[l]) >> 16);
    std::memcpy(out, narrow, sizeof narrow);
  }
  static void accumulate(Floats& sum, uint32_t y, const Words& q) {
    for (int l = 0; l < kLanes; ++l) {
      // The product is exact in double, and so is what a fused multiply-add rounds once, but for double rounding.
      const float high = flushed(float(double(sum[l]) + double(number(y & 0xffff0000u)) * number(q[l] & 0xffff0000u)));
      sum[l] = flushed(float(double(high) + double(number(y << 16)) * number(q[l] << 16)));
    }
  }
};
