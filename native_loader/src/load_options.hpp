// How a load reads, and what it did.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "progress_board.hpp"
#include "read_queue.hpp"
#include "source_file.hpp"

namespace firstlight {

enum class Backend {
    automatic,  // io_uring if this kernel lets us have it and the files can be read directly, else threads
    io_uring,   // or an error
    threads,    // blocking reads
};

std::string_view name_of(Backend backend);

struct LoadOptions {
    Backend backend = Backend::automatic;
    unsigned threads = 0;      // 0: as many as the backend needs to keep a fast device busy here
    unsigned queue_depth = 16;  // io_uring: blocks asked for at a time, over all threads
    std::uint64_t block_bytes = std::uint64_t{4} << 20;  // per read; a multiple of 4096
    bool direct = true;        // O_DIRECT where the file system takes it
    bool registered = false;   // io_uring: have the kernel keep the memory's pages at hand
    bool verify = true;        // checksums, of the segments that have one
    bool populate = false;     // make memory resident ahead of the reads
    std::shared_ptr<ProgressBoard> board;  // to mark, one chunk per segment; the job makes its own when null

    // Seams, for tests to put a device that misbehaves behind. ::pread and a ring when null.
    PositionalRead read_call = nullptr;
    OpenReadQueue open_queue = nullptr;
};

struct LoadReport {
    std::uint64_t size_bytes = 0;
    double seconds = 0;
    double cpu_seconds = 0;       // of the job's own threads, checksums included
    double checksum_seconds = 0;  // CPU time too
    std::string io_mode;
    std::string backend;
    std::vector<std::uint64_t> read_again;  // indices of segments that failed once and passed the second time
};

}  // namespace firstlight
