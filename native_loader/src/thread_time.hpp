// CPU time of the calling thread since the object was made.
#pragma once

#include <time.h>

#include <cstdint>

namespace firstlight {

class ThreadTime {
public:
    std::uint64_t elapsed_ns() const { return now_ns() - began_ns_; }

private:
    static std::uint64_t now_ns() {
        struct timespec now {};
        ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
        return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000U + static_cast<std::uint64_t>(now.tv_nsec);
    }
    std::uint64_t began_ns_ = now_ns();
};

}  // namespace firstlight
