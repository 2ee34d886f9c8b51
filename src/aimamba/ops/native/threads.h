// A few threads that share the work of a kernel.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace aim {

// While an instance lives, denormal numbers count as zero: products with very strong decays would otherwise be slow.
class FlushedDenormals {
  public:
    FlushedDenormals() : before_(control()) { set(before_ | FLAGS); }
    ~FlushedDenormals() { set(before_); }

  private:
#if defined(__x86_64__)
    static constexpr uint64_t FLAGS = 0x8040;
    static uint64_t control() { return _mm_getcsr(); }
    static void set(uint64_t value) { _mm_setcsr(static_cast<unsigned>(value)); }
#elif defined(__aarch64__)
    static constexpr uint64_t FLAGS = 1u << 24;
    static uint64_t control() {
        uint64_t value;
        asm volatile("mrs %0, fpcr" : "=r"(value));
        return value;
    }
    static void set(uint64_t value) { asm volatile("msr fpcr, %0" : : "r"(value)); }
#else
    static constexpr uint64_t FLAGS = 0;
    static uint64_t control() { return 0; }
    static void set(uint64_t) {}
#endif
    uint64_t before_;
};

// Threads that run the same phases in parallel. Each thread owns a range of the tasks of a phase, so that it reads
// memory in order, and helps the others when its range is done. A phase ends when all its tasks are done, so a thread
// that the system has suspended delays the others only if it is in the middle of a task.
class Threads {
  public:
    explicit Threads(int count) {
        for (int i = 1; i < count; ++i) workers_.emplace_back([this, i] { work(i); });
    }

    ~Threads() {
        start(nullptr);
        for (auto& worker : workers_) worker.join();
    }

    int count() const { return int(workers_.size()) + 1; }

    // The progress of one thread through the phases of a call of `run`.
    class Course {
      public:
        Course(Threads& threads, int thread) : threads_(threads), thread_(thread) {}

        // Run the next phase: `task` for 0 ... count - 1. Returns when all tasks are done, by any thread.
        template <typename Task>
        void share(int count, const Task& task) {
            const int threads = threads_.count();
            std::atomic<int>* given = &threads_.given_[size_t(next_) * threads];
            std::atomic<int>& done = threads_.done_[next_++];
            for (int k = 0; k < threads; ++k) {
                const int owner = (thread_ + k) % threads;
                const int first = int(int64_t(count) * owner / threads);
                const int size = int(int64_t(count) * (owner + 1) / threads) - first;
                if (given[owner].load(std::memory_order_relaxed) >= size) continue;
                for (int i; (i = given[owner].fetch_add(1, std::memory_order_relaxed)) < size;) {
                    task(first + i);
                    done.fetch_add(1, std::memory_order_release);
                }
            }
            wait([&] { return done.load(std::memory_order_acquire) == count; });
        }

      private:
        Threads& threads_;
        const int thread_;
        int next_ = 0;
    };

    // Run `job`, which has at most `phases` phases, in every thread including the calling one.
    void run(int phases, const std::function<void(Course&)>& job) {
        if (phases > int(done_.size())) {
            done_ = std::vector<std::atomic<int>>(phases);
            given_ = std::vector<std::atomic<int>>(size_t(phases) * count());
        }
        for (auto& counter : done_) counter.store(0, std::memory_order_relaxed);
        for (auto& counter : given_) counter.store(0, std::memory_order_relaxed);
        working_ = int(workers_.size());
        start(&job);
        const FlushedDenormals here;
        Course course(*this, 0);
        job(course);
        wait([&] { return working_.load(std::memory_order_acquire) == 0; });
    }

  private:
    template <typename Over>
    static void wait(const Over& over) {
        for (int spins = 0; !over(); ++spins) {
            if (spins < 4000) pause();
            else std::this_thread::yield();
        }
    }

    static void pause() {
#if defined(__x86_64__)
        _mm_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
    }

    void start(const std::function<void(Course&)>* job) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            job_ = job;
            ++call_;
        }
        wake_.notify_all();
    }

    void work(int thread) {
        const FlushedDenormals here;
        for (unsigned seen = 0;;) {
            const std::function<void(Course&)>* job;
            {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return call_ != seen; });
                seen = call_;
                job = job_;
            }
            if (job == nullptr) return;
            Course course(*this, thread);
            (*job)(course);
            working_.fetch_sub(1, std::memory_order_release);
        }
    }

    std::vector<std::thread> workers_;
    std::vector<std::atomic<int>> done_, given_;  // tasks done in every phase; tasks started, by phase and owner
    std::atomic<int> working_{0};
    std::mutex mutex_;
    std::condition_variable wake_;
    unsigned call_ = 0;
    const std::function<void(Course&)>* job_ = nullptr;
};

}  // namespace aim
