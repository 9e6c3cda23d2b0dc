#include "emulator.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <new>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <unordered_set>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {

Position position;

namespace {

constexpr size_t kStack = 256 * 1024;

enum class State { ready, waits_for_block, waits_for_warp, returned };

struct Copy {
  void* to;
  const void* from;
  size_t bytes, size;
};

struct Thread {
  Index index;
  unsigned lane;
  State state;
  ucontext_t first;  // where it begins; after that it is entered through `at`
  jmp_buf at;
  bool begun;
  void* fake_stack;  // AddressSanitizer's
  std::vector<Copy> copies;
  std::deque<std::vector<Copy>> groups;
  std::unique_ptr<char[]> stack;
};

struct Warp {
  unsigned mask, arrived;  // who has to come to the collective that is under way, and who is there
  Together together;
  void* lanes[32];
};

// The launch that is under way; there is one at a time.
std::mutex one_at_a_time;
std::vector<Thread> threads;
std::vector<Warp> warps;
Thread* current;
const std::function<void()>* body_of_all;
jmp_buf scheduler;
void* scheduler_fake_stack;
const void* scheduler_stack;
size_t scheduler_stack_size;
std::string error;
unsigned char* shared;
std::unordered_set<uintptr_t> addresses;

#if defined(__SANITIZE_ADDRESS__)
void leaving(void** fake_stack, const void* to, size_t size) { __sanitizer_start_switch_fiber(fake_stack, to, size); }
void arrived(void* fake_stack, const void** from, size_t* size) {
  __sanitizer_finish_switch_fiber(fake_stack, from, size);
}
#else
void leaving(void**, const void*, size_t) {}
void arrived(void*, const void**, size_t*) {}
#endif

// Back to the scheduler, until it comes here again.
void yield() {
  Thread* me = current;
  if (_setjmp(me->at) == 0) {
    leaving(&me->fake_stack, scheduler_stack, scheduler_stack_size);
    _longjmp(scheduler, 1);
  }
  arrived(me->fake_stack, nullptr, nullptr);
}

void begin() {
  arrived(nullptr, &scheduler_stack, &scheduler_stack_size);
  (*body_of_all)();
  current->state = State::returned;
  if (!current->copies.empty() || !current->groups.empty()) error = "a thread returned with copies under way";
  leaving(nullptr, scheduler_stack, scheduler_stack_size);
  _longjmp(scheduler, 1);
}

void enter(Thread& thread) {
  current = &thread;
  position.thread = thread.index;
  if (_setjmp(scheduler) == 0) {
    leaving(&scheduler_fake_stack, thread.stack.get(), kStack);
    if (thread.begun) _longjmp(thread.at, 1);
    thread.begun = true;
    setcontext(&thread.first);
  }
  arrived(scheduler_fake_stack, nullptr, nullptr);
}

void prepare(Thread& thread, unsigned number) {
  const Index size = position.block_size;
  thread.index = {number % size.x, number / size.x % size.y, number / (size.x * size.y)};
  thread.lane = number % 32;
  thread.state = State::ready;
  thread.begun = false;
  thread.copies.clear();
  thread.groups.clear();
  if (!thread.stack) thread.stack.reset(new char[kStack]);
  getcontext(&thread.first);
  thread.first.uc_stack.ss_sp = thread.stack.get();
  thread.first.uc_stack.ss_size = kStack;
  thread.first.uc_link = nullptr;
  makecontext(&thread.first, begin, 0);
}

// Lets the block's threads go on if all that have not returned wait for each other.
bool release_barrier(unsigned count) {
  for (unsigned i = 0; i < count; ++i) {
    if (threads[i].state != State::waits_for_block && threads[i].state != State::returned) return false;
  }
  bool any = false;
  for (unsigned i = 0; i < count; ++i) {
    if (threads[i].state == State::waits_for_block) threads[i].state = State::ready, any = true;
  }
  return any;
}

void run_block(unsigned count, std::mt19937& random) {
  for (unsigned i = 0; i < count; ++i) prepare(threads[i], i);
  for (Warp& warp : warps) warp = {};
  std::vector<unsigned> order(warps.size());
  std::iota(order.begin(), order.end(), 0u);
  // A warp goes as far as it can before the next one moves: all the way past a barrier that is missing.
  const auto run_warp = [&](unsigned warp) {
    for (bool went_on = true; went_on;) {
      went_on = false;
      const bool down = random() % 2 != 0;
      for (unsigned step = 0; step < 32; ++step) {
        const unsigned number = warp * 32 + (down ? 31 - step : step);
        if (number >= count || threads[number].state != State::ready) continue;
        enter(threads[number]);
        if (!error.empty()) return;
        went_on = true;
      }
    }
  };
  for (;;) {
    std::shuffle(order.begin(), order.end(), random);
    for (const unsigned warp : order) {
      run_warp(warp);
      if (!error.empty()) return;
    }
    if (release_barrier(count)) continue;
    for (unsigned i = 0; i < count; ++i) {
      if (threads[i].state != State::returned) error = "threads wait for others that do not come";
    }
    return;
  }
}

}  // namespace

void run(Index grid_size, Index block_size, size_t shared_bytes, const std::function<void()>& body) {
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  const unsigned count = block_size.x * block_size.y * block_size.z;
  if (count == 0 || count > 1024) throw std::runtime_error("a block of " + std::to_string(count) + " threads");
  if (grid_size.y > 65535 || grid_size.z > 65535) throw std::runtime_error("a grid of too many blocks");
  if (threads.size() < count) threads.resize(count);
  warps.resize((count + 31) / 32);
  body_of_all = &body;
  error.clear();
  addresses.clear();
  position.grid_size = grid_size;
  position.block_size = block_size;
  // Of the very size, so that AddressSanitizer sees what goes beyond; dynamic shared memory is aligned so on a GPU.
  // posix_memalign, as aligned_alloc wants sizes that are multiples of the alignment.
  void* allocated = nullptr;
  if (posix_memalign(&allocated, 1024, std::max<size_t>(shared_bytes, 1)) != 0) throw std::bad_alloc();
  const std::unique_ptr<void, void (*)(void*)> memory(allocated, std::free);
  shared = static_cast<unsigned char*>(allocated);
  std::mt19937 random(20210101);
  for (unsigned z = 0; z < grid_size.z; ++z) {
    for (unsigned y = 0; y < grid_size.y; ++y) {
      for (unsigned x = 0; x < grid_size.x; ++x) {
        position.block = {x, y, z};
        std::memset(shared, 0xFF, shared_bytes);
        run_block(count, random);
        if (!error.empty()) {
          throw std::runtime_error(error + ", in block (" + std::to_string(x) + ", " + std::to_string(y) + ", " +
                                   std::to_string(z) + "), thread (" + std::to_string(current->index.x) + ", " +
                                   std::to_string(current->index.y) + ", " + std::to_string(current->index.z) + ")");
        }
      }
    }
  }
}

unsigned char* shared_memory() { return shared; }

void fail(const char* why) {
  error = why;
  yield();  // and never comes back: the launch is over
  std::abort();
}

void barrier() {
  current->state = State::waits_for_block;
  yield();
}

void collective(unsigned mask, void* own, Together together) {
  Thread* me = current;
  Warp& warp = warps[static_cast<size_t>(me - threads.data()) / 32];
  if ((mask >> me->lane & 1u) == 0) fail("a lane is not in the mask of what it takes part in");
  if (warp.arrived == 0) {
    std::fill(std::begin(warp.lanes), std::end(warp.lanes), nullptr);
    warp.mask = mask;
    warp.together = together;
  } else if (warp.mask != mask || warp.together != together) {
    fail("lanes of a warp meet in different operations");
  }
  warp.lanes[me->lane] = own;
  warp.arrived |= 1u << me->lane;
  if (warp.arrived != mask) {
    me->state = State::waits_for_warp;
    yield();
    return;
  }
  together(warp.lanes);
  warp.arrived = 0;
  Thread* first = me - me->lane;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1u) first[lane].state = State::ready;
  }
}

void aligned(const void* address, size_t alignment) {
  if (reinterpret_cast<uintptr_t>(address) % alignment != 0) fail("an address is not aligned");
}

void stored(const void* address, size_t bytes) {
  const auto first = reinterpret_cast<uintptr_t>(address);
  for (uintptr_t at = first; at < first + bytes; at += 2) {
    if (!addresses.insert(at).second) fail("a result is stored twice");
  }
}

void copy_later(void* to, const void* from, size_t bytes, size_t size) {
  current->copies.push_back({to, from, bytes, size});
}

void commit_copies() {
  current->groups.push_back(std::move(current->copies));
  current->copies.clear();
}

void wait_for_copies(size_t groups_still_open) {
  for (; current->groups.size() > groups_still_open; current->groups.pop_front()) {
    for (const Copy& copy : current->groups.front()) {
      std::memcpy(copy.to, copy.from, copy.bytes);
      std::memset(static_cast<char*>(copy.to) + copy.bytes, 0, copy.size - copy.bytes);
    }
  }
}

}  // namespace emulator
