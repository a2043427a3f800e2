// Checks of simt.h on kernels small enough to be judged by eye. `selftest NAME` runs one, `selftest` lists them;
// what is wrong goes to stderr. kernels/test_simt.py runs each.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <chrono>
#include <cstdio>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

int failures = 0;

#define EXPECT(condition)                                                         \
  do {                                                                            \
    if (!(condition) && ++failures <= 5)                                          \
      std::fprintf(stderr, "line %d: %s\n", __LINE__, #condition);                \
  } while (0)

// The launch has to end in an error that says all of `words`.
void expect_error(const simt::Launch& launch, const std::function<void()>& kernel, std::vector<std::string> words) {
  std::string said = "nothing";
  try {
    simt::launch(launch, kernel);
  } catch (const std::exception& error) {
    said = error.what();
  }
  for (const auto& word : words)
    if (said.find(word) == std::string::npos && ++failures)
      std::fprintf(stderr, "no \"%s\" in: %s\n", word.c_str(), said.c_str());
}

constexpr unsigned kAll = ~0u;
constexpr uint64_t kSeeds[] = {0, 1, 2, 3, 4, 5, 6};

// ---------------------------------------------------------------- kernels

__global__ void __launch_bounds__(96) index_kernel(unsigned* out) {
  out[blockIdx.x * blockDim.x + threadIdx.x] = 1000 * blockIdx.x + threadIdx.x + gridDim.x;
}

// The sum of a block's values by a tree in shared memory. With `barriers` off it is a race.
__global__ void tree_kernel(const float* in, float* out, bool barriers) {
  float* tree = reinterpret_cast<float*>(simt::shared_memory());
  tree[threadIdx.x] = in[blockIdx.x * blockDim.x + threadIdx.x];
  for (unsigned half = blockDim.x / 2; half; half /= 2) {
    if (barriers) __syncthreads();
    if (threadIdx.x < half) tree[threadIdx.x] += tree[threadIdx.x + half];
  }
  if (threadIdx.x == 0) out[blockIdx.x] = tree[0];
}

// Warp 0 fills two buffers that the others read: named barriers "full" 1 + b, "empty" 3 + b.
__global__ void pipeline_kernel(int rounds, int* out) {
  int* buffers = reinterpret_cast<int*>(simt::shared_memory());
  const int threads = static_cast<int>(blockDim.x), lane = static_cast<int>(threadIdx.x % 32);
  int sum = 0;
  for (int r = 0; r < rounds; ++r) {
    const int b = r % 2;
    if (threadIdx.x < 32) {
      if (r >= 2) simt::barrier(3 + b, threads);
      buffers[32 * b + lane] = 100 * r + lane;
      simt::barrier(1 + b, threads);
    } else {
      simt::barrier(1 + b, threads);
      sum += buffers[32 * b + lane];
      if (r + 2 < rounds) simt::barrier_arrive(3 + b, threads);
    }
  }
  out[threadIdx.x] = sum;
}

// Each block adds its number to what the block before passed on.
__global__ void chain_kernel(int* flags, int* values) {
  if (threadIdx.x == 0) {
    int before = 0;
    if (blockIdx.x) {
      while (atomicAdd(&flags[blockIdx.x - 1], 0) == 0) simt::yield();
      before = values[blockIdx.x - 1];
    }
    values[blockIdx.x] = before + static_cast<int>(blockIdx.x);
    __threadfence();
    atomicExch(&flags[blockIdx.x], 1);
  }
}

// ---------------------------------------------------------------- checks

void indices() {
  for (uint64_t seed : kSeeds)
    for (unsigned resident : {0u, 1u, 3u}) {
      std::vector<unsigned> out(5 * 75);
      simt::launch({5, 75, 0, resident, seed}, [&] { index_kernel(out.data()); });
      for (unsigned i = 0; i < out.size(); ++i) EXPECT(out[i] == 1000 * (i / 75) + i % 75 + 5);
    }
}

void shuffles() {
  for (uint64_t seed : kSeeds) {
    simt::launch({3, 128, 0, 2, seed}, [] {
      const int lane = static_cast<int>(threadIdx.x % 32);
      for (int r = 0; r < 5; ++r) {
        const int mine = static_cast<int>(1000 * blockIdx.x + threadIdx.x) - lane;
        EXPECT(__shfl_sync(kAll, mine + lane, r + 3) == mine + r + 3);
        EXPECT(__shfl_sync(kAll, mine + lane, (lane + 7) % 32) == mine + (lane + 7) % 32);
        EXPECT(__shfl_xor_sync(kAll, float(lane), 5) == float(lane ^ 5));
        EXPECT(__shfl_up_sync(kAll, double(lane), 3) == double(lane < 3 ? lane : lane - 3));
        EXPECT(__shfl_down_sync(kAll, 1ull << lane, 3) == 1ull << (lane > 28 ? lane : lane + 3));
        EXPECT(__shfl_xor_sync(kAll, -1ll - lane, 16) == -1ll - (lane ^ 16));
        EXPECT(__shfl_sync(kAll, unsigned(lane), 1, 8) == unsigned(lane / 8 * 8 + 1));
        EXPECT(__shfl_down_sync(kAll, lane, 1, 4) == (lane % 4 == 3 ? lane : lane + 1));
        EXPECT(__float_as_uint(__shfl_sync(kAll, __uint_as_float(0x7FA00001u + lane), 2)) == 0x7FA00003u);
      }
    });
  }
}

void votes() {
  for (uint64_t seed : kSeeds) {
    simt::launch({2, 64, 0, 2, seed}, [] {
      const int lane = static_cast<int>(threadIdx.x % 32);
      EXPECT(__ballot_sync(kAll, lane % 3 == 0) == 0x49249249u);
      EXPECT(__any_sync(kAll, lane == 31) && !__any_sync(kAll, 0));
      EXPECT(__all_sync(kAll, 7) && !__all_sync(kAll, lane));
      EXPECT(__reduce_add_sync(kAll, lane) == 496);
      EXPECT(__reduce_min_sync(kAll, lane - 5) == -5 && __reduce_max_sync(kAll, lane - 40) == -9);
      EXPECT(__reduce_min_sync(kAll, unsigned(lane - 5)) == 0 && __reduce_max_sync(kAll, unsigned(lane - 5)) == kAll);
      // Two halves of a warp go different ways, and one of them splits again.
      if (lane < 16) {
        EXPECT(__reduce_add_sync(0xFFFFu, 1u) == 16);
        if (lane < 2) EXPECT(__shfl_xor_sync(3u, lane, 1) == (lane ^ 1));
        __syncwarp(0xFFFFu);
      } else {
        EXPECT(__ballot_sync(0xFFFF0000u, 1) == 0xFFFF0000u);
        EXPECT(__shfl_sync(0xFFFF0000u, lane, 2) == -1);  // undefined, so never a value that looks right
      }
      __syncwarp();
    });
  }
}

void barriers() {
  std::vector<float> in(4 * 256);
  for (size_t i = 0; i < in.size(); ++i) in[i] = 1.0f / static_cast<float>(1 + i * 37 % 101);
  std::vector<float> expected(4), out(4);
  bool race = false;
  for (uint64_t seed : kSeeds) {
    simt::launch({4, 256, 1024, 3, seed}, [&] { tree_kernel(in.data(), out.data(), true); });
    if (seed == 0) expected = out;
    EXPECT(out == expected && out[0] > 1);
    simt::launch({4, 256, 1024, 3, seed}, [&] { tree_kernel(in.data(), out.data(), false); });
    race |= std::memcmp(out.data(), expected.data(), 4 * sizeof(float)) != 0;
  }
  EXPECT(race);
}

void named_barriers() {
  for (uint64_t seed : kSeeds) {
    std::vector<int> out(128);
    simt::launch({1, 128, 256, 1, seed}, [&] { pipeline_kernel(9, out.data()); });
    for (int t = 32; t < 128; ++t) EXPECT(out[t] == 3600 + 9 * (t % 32));
  }
}

void chain() {
  for (uint64_t seed : kSeeds)
    for (unsigned resident : {1u, 2u, 5u}) {
      std::vector<int> flags(40), values(40);
      simt::launch({40, 32, 0, resident, seed}, [&] { chain_kernel(flags.data(), values.data()); });
      for (int i = 0; i < 40; ++i) EXPECT(values[i] == i * (i + 1) / 2);
    }
}

// Loops that wait without yield(), by an atomic, an uncached load, or a vote.
void polling() {
  for (uint64_t seed : kSeeds)
    for (int how = 0; how < 4; ++how) {
      int flag = 0, seen = 0;
      simt::launch({2, 64, 0, 2, seed}, [&] {
        const bool last = blockIdx.x == 1 && threadIdx.x >= 32;
        if (last && threadIdx.x == 63) atomicExch(&flag, 1);
        if (last) return;
        if (how == 0) while (atomicCAS(&flag, 2, 2) == 0) {}
        if (how == 1) while (__ldcg(&flag) == 0) {}
        if (how == 2) while (!__any_sync(kAll, *static_cast<volatile int*>(&flag))) {}
        if (how == 3) while (!__any_sync(1u << threadIdx.x % 32, *static_cast<volatile int*>(&flag))) {}
        atomicAdd(&seen, 1);
      });
      EXPECT(seen == 96);
    }
}

void atomics() {
  for (uint64_t seed : kSeeds) {
    int sum = 0, low = 1000, lock = 0, guarded = 0;
    unsigned high = 0, next = 0, tickets[128] = {};
    unsigned long long wide = 0;
    float real = 0;
    simt::launch({2, 64, 0, 2, seed}, [&] {
      const int id = static_cast<int>(64 * blockIdx.x + threadIdx.x);
      atomicAdd(&sum, id);
      atomicMin(&low, 900 - id);
      atomicMax(&high, static_cast<unsigned>(id));
      atomicAdd(&wide, 1ull << 40);
      atomicAdd(&real, 0.5f);
      ++tickets[atomicAdd(&next, 1u)];
      while (atomicCAS(&lock, 0, 1) != 0) {}
      const int before = guarded;
      __threadfence();
      guarded = before + 1;
      atomicExch(&lock, 0);
    });
    EXPECT(sum == 127 * 64 && low == 773 && high == 127 && wide == 128ull << 40 && real == 64 && guarded == 128);
    for (unsigned t : tickets) EXPECT(t == 1);
  }
}

void shared_memory() {
  simt::launch({3, 32, 1000, 1, 0}, [] {
    char* shared = simt::shared_memory();
    EXPECT(reinterpret_cast<uintptr_t>(shared) % 1024 == 0);
    const float first = reinterpret_cast<float*>(shared)[threadIdx.x];
    EXPECT(first != first);
    __syncwarp();
    reinterpret_cast<float*>(shared)[threadIdx.x] = 1;
    shared[999] = 0;
    EXPECT(std::isnan(reinterpret_cast<float*>(shared)[250]));  // beyond the end
  });
  expect_error({3, 32, 1000, 2, 0}, [] { if (blockIdx.x == 1) simt::shared_memory()[1003] = 1; },
               {"block 1 wrote outside of its shared memory, at byte 1003 of 1000"});
  expect_error({1, 32, 1000, 2, 0}, [] { simt::shared_memory()[-1] = 1; }, {"at byte -1 of 1000"});
}

void errors() {
  for (uint64_t seed : kSeeds) {
    const simt::Launch one{1, 64, 0, 1, seed};
    expect_error(one, [] { if (threadIdx.x % 32 == 3) __ballot_sync(kAll, 1); else __shfl_xor_sync(kAll, 1.0f, 1); },
                 {"block 0 thread", "called", "__ballot_sync", "__shfl_xor_sync(float)", "wait for it at"});
    expect_error(one, [] { if (threadIdx.x % 32 == 3) __shfl_sync(kAll, 1, 1); else __shfl_sync(kAll, 1.0f, 1); },
                 {"__shfl_sync(int)", "__shfl_sync(float)"});
    expect_error(one, [] { if (threadIdx.x != 40) __syncwarp(); }, {"thread", "40", "ended", "__syncwarp"});
    expect_error(one, [] { __shfl_sync(1u << (threadIdx.x + 1) % 32, 1, 0); }, {"which is not one of them"});
    expect_error({1, 40, 0, 1, seed}, [] { __ballot_sync(kAll, 1); }, {"has only threads 32-39"});
    expect_error(one, [] { if (threadIdx.x != 5) __syncthreads(); },
                 {"block 0: threads ", "wait at __syncthreads but threads 5 have ended"});
    expect_error(one, [] { simt::barrier(1, threadIdx.x % 2 ? 64 : 32); }, {"barrier(1, 64)", "barrier(1, 32)"});
    expect_error(one, [] { simt::barrier(1, 33); }, {"called barrier(1, 33) in a block of 64"});
    expect_error({2, 64, 0, 2, seed}, [] { if (threadIdx.x < 32) __syncthreads(); else simt::barrier(2, 64); },
                 {"deadlock", "block 0: 32 at __syncthreads, 32 at barrier(2, 64)", "block 1: "});
    expect_error({1, 32, 0, 1, seed}, [] { if (threadIdx.x) __syncwarp(); else __syncthreads(); },
                 {"deadlock", "1 at __syncthreads, 31 at __syncwarp of lanes 0xffffffff"});
    expect_error(one, [] { if (threadIdx.x == 9) throw std::invalid_argument("nine"); __syncthreads(); }, {"nine"});
    expect_error(one, [] { if (threadIdx.x == 9) __trap(); __syncthreads(); }, {"block 0 thread 9: __trap()"});
    expect_error(one, [] { simt::launch({}, [] {}); }, {"a launch within a launch"});
    indices();  // what an error left behind does not disturb the next launch
  }
  expect_error({1, 2048, 0, 1, 0}, [] {}, {"a block of 2048 threads"});
  bool refused = false;
  try {
    __syncthreads();
  } catch (const std::runtime_error&) {
    refused = true;
  }
  EXPECT(refused);
}

void stuck() {
  simt::options().stall_limit = 20000;
  for (uint64_t seed : kSeeds) {
    volatile int flag = 0;
    expect_error({1, 64, 0, 1, seed}, [&] { if (threadIdx.x == 1) while (!flag) simt::yield(); else __syncthreads(); },
                 {"no progress in 20000", "63 at __syncthreads"});
    expect_error({1, 64, 0, 1, seed}, [&] { while (!__any_sync(kAll, flag)) {} }, {"no progress"});
    int lock = 1;
    expect_error({1, 32, 0, 1, seed}, [&] { while (atomicCAS(&lock, 0, 1)) {} }, {"no progress"});
  }
}

void deep_stacks() {
  const auto fill = [] {
    volatile char frame[50000];
    for (size_t i = 0; i < sizeof(frame); i += 512) frame[i] = static_cast<char>(threadIdx.x);
    __syncthreads();
    for (size_t i = 0; i < sizeof(frame); i += 512) EXPECT(frame[i] == static_cast<char>(threadIdx.x));
  };
  simt::launch({2, 256, 0, 2, 0}, fill);
  simt::options().stack_bytes = 256 << 10;
  simt::launch({2, 256, 0, 2, 1}, fill);
}

// Every pair of neighbouring values of a 16-bit format: both, their middle (to the even one), and next to the middle.
template <class Narrow, class Wide>
void conversions(unsigned infinity, Narrow narrow, Wide wide) {
  for (unsigned sign : {0u, 0x8000u})
    for (unsigned low = 0; low < infinity; ++low) {
      const double a = wide(sign | low);
      const double beyond = 2 * double(wide(infinity - 1)) - double(wide(infinity - 2));  // in place of infinity
      const double b = low + 1 < infinity ? double(wide(sign | (low + 1))) : sign ? -beyond : beyond;
      const float middle = static_cast<float>((a + b) / 2);
      EXPECT(std::fabs(double(wide(low))) < std::fabs(b));
      EXPECT(narrow(static_cast<float>(a)) == (sign | low));
      EXPECT(narrow(middle) == (sign | (low + low % 2)));
      EXPECT(narrow(std::nextafterf(middle, 0)) == (sign | low));
      EXPECT(narrow(std::nextafterf(middle, static_cast<float>(b))) == (sign | (low + 1)));
    }
  const float huge = std::numeric_limits<float>::infinity();
  EXPECT(wide(infinity) == huge && wide(infinity | 0x8000) == -huge);
  EXPECT(narrow(huge) == infinity && narrow(-huge) == (infinity | 0x8000));
  EXPECT(narrow(std::numeric_limits<float>::max()) == infinity && narrow(-0.0f) == 0x8000);
  EXPECT(narrow(std::numeric_limits<float>::denorm_min()) == 0);
  EXPECT(narrow(__uint_as_float(0x7F800001)) == 0x7FFF && narrow(__uint_as_float(0xFFFFFFFF)) == 0x7FFF);
  for (unsigned nan = infinity + 1; nan < 0x8000; ++nan) EXPECT(std::isnan(wide(nan)));
}

void halves() {
  const auto bits = [](unsigned b) { return static_cast<unsigned short>(b); };
  conversions(0x7C00, [](float f) { return unsigned(__float2half_rn(f).__x); },
              [&](unsigned b) { return __half2float(__half{bits(b)}); });
  conversions(0x7F80, [](float f) { return unsigned(__float2bfloat16_rn(f).__x); },
              [&](unsigned b) { return __bfloat162float(__nv_bfloat16{bits(b)}); });
  EXPECT(__half2float({0x3C00}) == 1 && __half2float({0x0001}) == 0x1p-24f && __half2float({0x7BFF}) == 65504);
  EXPECT(__bfloat162float({0x3F80}) == 1);
}

void intrinsics() {
  EXPECT(__popc(0xF0F0u) == 8 && __popcll(~0ull) == 64 && __ffs(8) == 4 && __ffs(0) == 0 && __clz(1) == 31);
  EXPECT(__clz(0) == 32 && __float_as_int(1.0f) == 0x3F800000);
  EXPECT(__longlong_as_double(__double_as_longlong(0.1)) == 0.1);
  EXPECT(__fsqrt_rn(2.0f) == std::sqrt(2.0f) && __frcp_rn(3.0f) == 1.0f / 3 && rsqrtf(4.0f) == 0.5f);
  EXPECT(min(3, 4u) == 3u && max(-1, 0u) == ~0u && min(2ll, 1ll) == 1);
  EXPECT(min(NAN, 1.0f) == 1.0f && max(1.0, double(NAN)) == 1.0);
  int value = 0;
  EXPECT(cudaDeviceGetAttribute(&value, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0) == cudaSuccess && value == 232448);
  EXPECT(cudaFuncSetAttribute(index_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 1) == cudaSuccess);
  EXPECT(sizeof(float4) == 16 && alignof(float4) == 16 && make_uint2(1, 2).y == 2);
}

// Prints microseconds; judges nothing.
void speed() {
  const auto time = [](const char* what, const simt::Launch& launch, const std::function<void()>& round) {
    constexpr int kRounds = 1000;
    const auto start = std::chrono::steady_clock::now();
    simt::launch(launch, [&] { for (int i = 0; i < kRounds; ++i) round(); });
    const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - start;
    std::printf("%-28s seed %d %8.2f us\n", what, static_cast<int>(launch.seed), took.count() / kRounds);
  };
  for (uint64_t seed : {0, 1, 2, 3}) {
    time("shuffle, 2 x 256 threads", {2, 256, 0, 2, seed}, [] { __shfl_xor_sync(kAll, 1.0f, 1); });
    time("__syncthreads, 256 threads", {1, 256, 0, 1, seed}, [] { __syncthreads(); });
  }
}

struct Check {
  const char* name;
  void (*run)();
};
constexpr Check kChecks[] = {
    {"indices", indices}, {"shuffles", shuffles}, {"votes", votes}, {"barriers", barriers},
    {"named_barriers", named_barriers}, {"chain", chain}, {"polling", polling}, {"atomics", atomics},
    {"shared_memory", shared_memory}, {"errors", errors}, {"stuck", stuck}, {"deep_stacks", deep_stacks},
    {"halves", halves}, {"intrinsics", intrinsics}, {"speed", speed}};

}  // namespace

int main(int argc, char** argv) {
  if (argc == 1)
    for (const Check& check : kChecks) std::puts(check.name);
  for (int i = 1; i < argc; ++i)
    for (const Check& check : kChecks)
      if (std::string(argv[i]) == check.name) check.run();
  if (failures) std::fprintf(stderr, "%d failed\n", failures);
  return failures != 0;
}
