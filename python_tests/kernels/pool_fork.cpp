// The pool of blocks.h while the process forks: threads take and give large blocks without a pause, and each of many
// children, forked meanwhile, must get one too. Exit code 0 if all did; a child that waits for ever is ended by its alarm.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <thread>
#include <vector>

#include "cpu/blocks.h"

namespace {

void take_and_give() {
  size_t bytes = size_t(2) << 20;
  void* const block = ldreg::take_block(&bytes);
  ldreg::give_block(block, bytes);
}

}  // namespace

int main() {
  std::atomic<bool> over{false};
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t)
    threads.emplace_back([&] {
      while (!over) take_and_give();
    });
  int failed = 0;
  for (int child = 0; child < 200 && !failed; ++child) {
    const pid_t id = fork();
    if (id == 0) {
      alarm(5);
      take_and_give();
      _exit(0);
    }
    int status = 0;
    failed += id < 0 || waitpid(id, &status, 0) != id || status != 0;
  }
  over = true;
  for (auto& thread : threads) thread.join();
  if (failed) std::puts("a forked child did not get a block");
  return failed ? 1 : 0;
}
