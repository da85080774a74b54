// A stand-in for libcuda.so in tests: memory is the host's, a stream does its work at once, and a module is a shared
// library that nvrtc.cpp made of the kernels. A launch runs the blocks one after the other, on the thread that asks for it.
//
// Tests call `emulated_limit_blocks` and `emulated_disorder`. EMULATED_DEVICES sets the number of devices, EMULATED_TRACE prints
// launches. With EMULATED_NULL every module loads and no launch or copy does anything: programs run through with void results, while the real
// NVRTC compiles what they launch (`make gpu-pack`).
#include <dlfcn.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>
#include <atomic>
#include <map>
#include <mutex>
#include <string>
#include <vector>

struct Index { unsigned x = 1, y = 1, z = 1; };

namespace {
constexpr size_t STACK = 128 << 10;
constexpr unsigned WARP = 32;

struct Fiber {
  ucontext_t context;
  void* stack = nullptr;
  bool done = false;
  Index index;
  unsigned long block_barriers = 0, warp_barriers = 0;
};

// The launch that the thread executes.
struct Block {
  std::vector<Fiber> fibers;
  ucontext_t scheduler;
  size_t current = 0, size = 0;
  Index grid, block, at;
  void (*kernel)(const void*) = nullptr;
  const void* argument = nullptr;
  std::vector<char> shared;
  std::vector<uint64_t> slots;
  // Passes over all fibers in which none arrived anywhere and none paused.
  bool progress = false;
  uint64_t random = 0;
  // Which blocks run.
  unsigned first = 0, count = ~0u;
  ~Block() {
    for (Fiber& f : fibers) if (f.stack) munmap(f.stack, STACK);
  }
};
thread_local Block b;

uint64_t next_random() {
  b.random ^= b.random << 13;
  b.random ^= b.random >> 7;
  b.random ^= b.random << 17;
  return b.random;
}
void give_way() { swapcontext(&b.fibers[b.current].context, &b.scheduler); }
void run_fiber() {
  b.kernel(b.argument);
  b.fibers[b.current].done = true;
  give_way();
}

void run_block() {
  for (size_t i = 0; i < b.size; i++) {
    Fiber& f = b.fibers[i];
    if (!f.stack) {
      f.stack = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (f.stack == MAP_FAILED) { perror("emulated driver: stack"); abort(); }
    }
    f.done = false;
    f.block_barriers = f.warp_barriers = 0;
    f.index = {unsigned(i), 0, 0};
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack;
    f.context.uc_stack.ss_size = STACK;
    f.context.uc_link = &b.scheduler;
    makecontext(&f.context, run_fiber, 0);
  }
  for (size_t left = b.size; left;) {
    b.progress = false;
    left = 0;
    size_t start = b.random ? next_random() % b.size : 0;
    for (size_t i = 0; i < b.size; i++) {
      b.current = (start + i) % b.size;
      if (b.fibers[b.current].done) continue;
      swapcontext(&b.scheduler, &b.fibers[b.current].context);
      if (b.fibers[b.current].done) b.progress = true; else left++;
    }
    if (left && !b.progress) {
      fprintf(stderr, "emulated driver: block %u: %zu threads wait at barriers that the others do not reach\n", b.at.x, left);
      abort();
    }
  }
}
}  // namespace

extern "C" {
const Index* emulated_thread() { return &b.fibers[b.current].index; }
const Index* emulated_block() { return &b.at; }
const Index* emulated_block_size() { return &b.block; }
const Index* emulated_grid() { return &b.grid; }
void* emulated_dynamic_shared() { return (void*)(((uintptr_t)b.shared.data() + 127) & ~(uintptr_t)127); }
unsigned long long emulated_nanoseconds() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ull + t.tv_nsec;
}
void emulated_pause() {
  b.progress = true;
  sched_yield();
  give_way();
}
void emulated_sync_block() {
  unsigned long want = ++b.fibers[b.current].block_barriers;
  b.progress = true;
  for (;;) {
    bool all = true;
    for (size_t i = 0; i < b.size && all; i++) all = b.fibers[i].done || b.fibers[i].block_barriers >= want;
    if (all) return;
    give_way();
  }
}
void emulated_sync_warp(unsigned mask) {
  unsigned long want = ++b.fibers[b.current].warp_barriers;
  size_t first = b.current / WARP * WARP;
  b.progress = true;
  for (;;) {
    bool all = true;
    for (size_t i = 0; i < WARP && first + i < b.size && all; i++) {
      all = !(mask >> i & 1) || b.fibers[first + i].done || b.fibers[first + i].warp_barriers >= want;
    }
    if (all) return;
    give_way();
  }
}
uint64_t emulated_shuffle(unsigned mask, uint64_t value, int source) {
  b.slots[b.current] = value;
  emulated_sync_warp(mask);
  uint64_t out = b.slots[b.current / WARP * WARP + source];
  emulated_sync_warp(mask);
  return out;
}
unsigned emulated_ballot(unsigned mask, int predicate) {
  b.slots[b.current] = predicate != 0;
  emulated_sync_warp(mask);
  unsigned out = 0;
  size_t first = b.current / WARP * WARP;
  for (size_t i = 0; i < WARP && first + i < b.size; i++) {
    if (mask >> i & 1) out |= unsigned(b.slots[first + i]) << i;
  }
  emulated_sync_warp(mask);
  return out;
}

// The launches that follow on this thread run `count` blocks from `first` on, so that tests reach positions beyond 2^31.
void emulated_limit_blocks(unsigned first, unsigned count) { b.first = first; b.count = count; }
// The launches that follow, on all threads, run fibers in random order and pause at random; 0 ends that.
static std::atomic<unsigned long long> disorder{0};
void emulated_disorder(unsigned long long seed) { disorder = seed; }

// ---- the driver's functions ----

typedef int Result;
typedef unsigned long long Address;
typedef void* Handle;
enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_IMAGE = 200, NOT_FOUND = 500 };

static std::mutex guard;
static const bool null_device = getenv("EMULATED_NULL") != nullptr;
static std::map<Address, size_t> allocations;
static thread_local Handle context;

Result cuInit(unsigned) { return SUCCESS; }
Result cuDriverGetVersion(int* v) { *v = 13000; return SUCCESS; }
Result cuDeviceGetCount(int* n) {
  const char* count = getenv("EMULATED_DEVICES");
  *n = count ? atoi(count) : 1;
  return SUCCESS;
}
Result cuDeviceGet(int* d, int ordinal) { *d = ordinal; return SUCCESS; }
Result cuDeviceGetName(char* name, int n, int) { snprintf(name, n, "emulated device"); return SUCCESS; }
Result cuDeviceGetAttribute(int* v, int attribute, int) {
  switch (attribute) {
    case 16: *v = null_device ? 132 : 16; break;  // multiprocessors
    case 39: *v = 2048; break;         // threads of a multiprocessor
    case 75: *v = 9; break;            // compute capability
    case 76: *v = 0; break;
    case 97: *v = 227 * 1024; break;   // shared memory
    default: *v = 1;
  }
  return SUCCESS;
}
Result cuDevicePrimaryCtxRetain(Handle* c, int d) { *c = (Handle)(intptr_t)(d + 1); return SUCCESS; }
Result cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
Result cuCtxGetCurrent(Handle* c) { *c = context; return SUCCESS; }
Result cuCtxSetCurrent(Handle c) { context = c; return SUCCESS; }
Result cuCtxSynchronize() { return SUCCESS; }
Result cuDeviceCanAccessPeer(int* can, int, int) { *can = 1; return SUCCESS; }
Result cuCtxEnablePeerAccess(Handle, unsigned) { return SUCCESS; }
Result cuMemAlloc_v2(Address* p, size_t n) {
  // Large tensors are never written whole; the system gives pages when they are touched.
  size_t length = (n + 4095) / 4096 * 4096;
  void* at = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) return OUT_OF_MEMORY;
  *p = (Address)at;
  std::lock_guard<std::mutex> lock(guard);
  allocations[*p] = length;
  return SUCCESS;
}
Result cuMemFree_v2(Address p) {
  std::lock_guard<std::mutex> lock(guard);
  auto found = allocations.find(p);
  if (found == allocations.end()) return INVALID_VALUE;
  munmap((void*)p, found->second);
  allocations.erase(found);
  return SUCCESS;
}
Result cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t n, Handle) { if (!null_device) memcpy((void*)to, from, n); return SUCCESS; }
Result cuMemcpyDtoHAsync_v2(void* to, Address from, size_t n, Handle) { if (!null_device) memcpy(to, (void*)from, n); return SUCCESS; }
Result cuMemcpyDtoDAsync_v2(Address to, Address from, size_t n, Handle) { if (!null_device) memcpy((void*)to, (void*)from, n); return SUCCESS; }
Result cuMemsetD8Async(Address p, unsigned char v, size_t n, Handle) { if (!null_device) memset((void*)p, v, n); return SUCCESS; }
Result cuStreamCreate(Handle* s, unsigned) { static std::atomic<intptr_t> last{100}; *s = (Handle)++last; return SUCCESS; }
Result cuStreamDestroy_v2(Handle) { return SUCCESS; }
Result cuStreamSynchronize(Handle) { return SUCCESS; }
Result cuStreamWaitEvent(Handle, Handle, unsigned) { return SUCCESS; }
Result cuEventCreate(Handle* e, unsigned) { *e = new unsigned long long(0); return SUCCESS; }
Result cuEventDestroy_v2(Handle e) { delete (unsigned long long*)e; return SUCCESS; }
Result cuEventRecord(Handle e, Handle) { *(unsigned long long*)e = emulated_nanoseconds(); return SUCCESS; }
Result cuEventSynchronize(Handle) { return SUCCESS; }
Result cuEventQuery(Handle) { return SUCCESS; }
Result cuEventElapsedTime_v2(float* ms, Handle from, Handle to) {
  *ms = float(*(unsigned long long*)to - *(unsigned long long*)from) * 1e-6f;
  return SUCCESS;
}
// An image is the name of a shared library, see nvrtc.cpp.
Result cuModuleLoadData(Handle* m, const void* image) {
  if (null_device) {
    *m = (Handle)1;
    return SUCCESS;
  }
  const char* text = (const char*)image;
  static const char MAGIC[] = "emulated:";
  if (strncmp(text, MAGIC, sizeof(MAGIC) - 1) != 0) return NO_IMAGE;
  *m = dlopen(text + sizeof(MAGIC) - 1, RTLD_NOW | RTLD_LOCAL);
  if (!*m && getenv("EMULATED_TRACE")) fprintf(stderr, "emulated driver: %s\n", dlerror());
  return *m ? SUCCESS : NO_IMAGE;
}
Result cuModuleUnload(Handle) { return SUCCESS; }
Result cuModuleGetFunction(Handle* f, Handle m, const char* name) {
  if (null_device) {
    *f = (Handle)1;
    return SUCCESS;
  }
  *f = dlsym(m, (std::string("emulated_call_") + name).c_str());
  return *f ? SUCCESS : NOT_FOUND;
}
Result cuFuncGetAttribute(int* v, int, Handle) { *v = 32; return SUCCESS; }
Result cuFuncSetAttribute(Handle, int, int) { return SUCCESS; }
Result cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, Handle, int block, size_t) { *n = 2048 / block; return SUCCESS; }
Result cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, Handle, int block, size_t, unsigned) { *n = 2048 / block; return SUCCESS; }
Result cuLaunchKernel(Handle f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                      Handle, void** parameters, void**) {
  if (!gx || gy != 1 || gz != 1 || !bx || by != 1 || bz != 1 || bx > 1024) return INVALID_VALUE;
  if (getenv("EMULATED_TRACE")) fprintf(stderr, "emulated driver: launch grid %u block %u shared %u\n", gx, bx, shared);
  if (null_device) return SUCCESS;
  b.kernel = (void (*)(const void*))f;
  b.argument = parameters[0];
  b.grid = {gx, 1, 1};
  b.block = {bx, 1, 1};
  b.size = bx;
  if (b.fibers.size() < bx) b.fibers.resize(bx);
  b.slots.assign(1024, 0);
  if (!disorder) b.random = 0;
  else if (!b.random) b.random = (disorder + (unsigned long long)gettid()) * 0x9e3779b97f4a7c15ull;
  for (unsigned x = b.first; x < gx && x - b.first < b.count; x++) {
    // Shared memory holds garbage at the start of a block.
    b.shared.assign(shared + 256, char(0xcd));
    b.at = {x, 0, 0};
    run_block();
    if (b.random && next_random() % 4 == 0) usleep(next_random() % 50);
  }
  return SUCCESS;
}
Result cuGetErrorName(int code, const char** s) { *s = code == NO_IMAGE ? "CUDA_ERROR_INVALID_IMAGE" : "CUDA_ERROR"; return SUCCESS; }
Result cuGetErrorString(int, const char** s) { *s = "the emulated driver refused the call"; return SUCCESS; }
}
