// Reads a buffer once at the full bandwidth of memory. Every thread reads its own part as several interleaved streams,
// which keeps more memory pages open and more prefetches in flight than a single stream.
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

constexpr std::size_t kBlock = 32;   // 8-byte numbers read from one stream before the next
constexpr std::size_t kAhead = 256;  // how many numbers ahead to prefetch

std::uint64_t read_part(const std::uint64_t* numbers, std::size_t count, std::size_t streams) {
    const std::size_t stride = count / streams / kBlock * kBlock;
    std::uint64_t found[kBlock] = {};
    for (std::size_t at = 0; at < stride; at += kBlock) {
        for (std::size_t stream = 0; stream < streams; ++stream) {
            const std::uint64_t* block = numbers + stream * stride + at;
            for (std::size_t line = 0; line < kBlock; line += 8) __builtin_prefetch(block + kAhead + line);
            for (std::size_t i = 0; i < kBlock; ++i) found[i] ^= block[i];
        }
    }
    std::uint64_t all = 0;
    for (std::uint64_t each : found) all ^= each;
    return all;
}

}  // namespace

extern "C" std::uint64_t read_stream(const std::uint64_t* numbers, std::size_t count, std::size_t threads,
                                     std::size_t streams) {
    std::vector<std::uint64_t> found(threads);
    std::vector<std::thread> workers;
    const std::size_t part = count / threads;
    for (std::size_t i = 0; i < threads; ++i)
        workers.emplace_back([=, &found] { found[i] = read_part(numbers + i * part, part, streams); });
    for (auto& worker : workers) worker.join();
    std::uint64_t all = 0;
    for (std::uint64_t each : found) all ^= each;
    return all;
}
