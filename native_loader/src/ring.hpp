// io_uring by its system calls alone, as far as reading files needs it.
#pragma once

#include <memory>
#include <span>

#include "mapping.hpp"
#include "read_queue.hpp"
#include "result.hpp"

namespace firstlight {

// Kernel 5.6 or later, and not forbidden here; otherwise the error says which. Reads into `registered` memory need
// not look up its pages each time; memory that the kernel does not let us pin (RLIMIT_MEMLOCK) is read into as it is.
Result<std::unique_ptr<ReadQueue>> open_ring(unsigned depth, std::span<std::byte> registered = {});

}  // namespace firstlight
