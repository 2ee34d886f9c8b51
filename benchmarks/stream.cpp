// Reads a buffer once, as fast as memory gives it: every thread takes a part of its own and reads it at several places
// in turn, which keeps more of the memory's pages open and more prefetches under way than one place does.
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

constexpr std::size_t kBlock = 32;   // numbers of 8 bytes that are read at one place before the next
constexpr std::size_t kAhead = 256;  // numbers that a prefetch is ahead

std::uint64_t read_part(const std::uint64_t* numbers, std::size_t count, std::size_t places) {
    const std::size_t stride = count / places / kBlock * kBlock;
    std::uint64_t found[kBlock] = {};
    for (std::size_t at = 0; at < stride; at += kBlock) {
        for (std::size_t place = 0; place < places; ++place) {
            const std::uint64_t* block = numbers + place * stride + at;
            for (std::size_t line = 0; line < kBlock; line += 8) __builtin_prefetch(block + kAhead + line);
            for (std::size_t i = 0; i < kBlock; ++i) found[i] ^= block[i];
        }
    }
    std::uint64_t all = 0;
    for (std::uint64_t each : found) all ^= each;
    return all;
}

}  // namespace

extern "C" std::uint64_t read_stream(
    const std::uint64_t* numbers, std::size_t count, std::size_t threads, std::size_t places) {
    std::vector<std::uint64_t> found(threads);
    std::vector<std::thread> workers;
    const std::size_t part = count / threads;
    for (std::size_t i = 0; i < threads; ++i)
        workers.emplace_back([=, &found] { found[i] = read_part(numbers + i * part, part, places); });
    for (auto& worker : workers) worker.join();
    std::uint64_t all = 0;
    for (std::uint64_t each : found) all ^= each;
    return all;
}
