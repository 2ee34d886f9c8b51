// Running tasks in PyTorch's threads.
#pragma once

#include <algorithm>
#include <atomic>

#include "native/threads.h"

namespace aim {

// PyTorch's threads spin for a while after each of its operations and would compete with threads of our own. So tasks
// run in them, through the OpenMP library that they belong to. Without that library, tasks run in new threads.
class Team {
  public:
    // `parallel`: the address of GOMP_parallel, or null.
    Team(void* parallel, int threads) : parallel_(reinterpret_cast<Parallel>(parallel)), threads_(threads) {}

    // Run `task` for 0 ... count - 1, in any order. Returns when all are done.
    template <typename Task>
    void share(int count, const Task& task) const {
        const int threads = std::min(threads_, count);
        if (parallel_ == nullptr && threads > 1) {
            Threads(threads).run(1, [&](Threads::Course& course) { course.share(count, task); });
            return;
        }
        Job<Task> job{task, count, {0}};
        if (threads > 1) parallel_(&Job<Task>::work, &job, unsigned(threads), 0);
        else Job<Task>::work(&job);
    }

  private:
    using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

    template <typename Task>
    struct Job {
        const Task& task;
        const int count;
        std::atomic<int> next;

        static void work(void* data) {
            const FlushedDenormals here;
            auto& job = *static_cast<Job*>(data);
            for (int i; (i = job.next.fetch_add(1, std::memory_order_relaxed)) < job.count;) job.task(i);
        }
    };

    Parallel parallel_;
    int threads_;
};

}  // namespace aim
