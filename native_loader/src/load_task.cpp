#include "load_task.hpp"

#include <unistd.h>

#include <algorithm>
#include <limits>
#include <string>
#include <unordered_map>
#include <utility>

#include "crc32c.hpp"
#include "thread_time.hpp"

namespace firstlight {
namespace {

Error invalid(const std::string& message) {
    return Error{ErrorCode::invalid_argument, message, 0, "", std::nullopt};
}

Error cancelled() { return Error{ErrorCode::cancelled, "the load was cancelled", 0, "", std::nullopt}; }

constexpr std::uint64_t kLargestBlockBytes = std::uint64_t{1} << 30;
constexpr unsigned kLargestQueueDepth = 4096;

BlockSizes sizes_of(const LoadOptions& options) {
    return {options.block_bytes, options.block_bytes * options.queue_depth};
}

Status check_segments(const Mapping& memory, const std::vector<Segment>& segments) {
    if (memory.access() != Access::read_write) return invalid("the memory is mapped for reading only");
    const auto largest = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
    for (const Segment& segment : segments) {
        if (segment.length == 0) return invalid("a segment of " + segment.path + " is empty");
        if (segment.file_offset > largest || segment.length > largest - segment.file_offset)
            return invalid("a segment of " + segment.path + " overflows");
        if (!memory.contains(segment.arena_offset, segment.length))
            return invalid("a segment of " + segment.path + " lies outside of the arena");
    }
    return Done{};
}

}  // namespace

LoadTask::LoadTask(std::shared_ptr<Mapping> memory, std::vector<Segment> segments, const LoadOptions& options)
    : memory_(std::move(memory)),
      segments_(std::move(segments)),
      plan_(plan_reads(segments_, sizes_of(options))),
      verify_(options.verify),
      order_(plan_.blocks.size()),
      block_crc32c_(plan_.blocks.size()),
      blocks_left_(segments_.size()),
      must_be_read_again_(segments_.size()) {
    for (const Block& block : plan_.blocks) ++blocks_left_[block.segment];
}

Result<std::unique_ptr<LoadTask>> LoadTask::create(std::shared_ptr<Mapping> memory, std::vector<Segment> segments,
                                                   const LoadOptions& options) {
    if (options.block_bytes == 0 || options.block_bytes % kDirectAlignmentBytes != 0 ||
        options.block_bytes > kLargestBlockBytes)
        return invalid("a block must be a multiple of 4096 bytes, and at most 1 GiB");
    if (options.queue_depth == 0 || options.queue_depth > kLargestQueueDepth)
        return invalid("the queue depth must be 1 to 4096");
    Status status = check_segments(*memory, segments);
    if (!status.ok()) return status.error();
    std::unique_ptr<LoadTask> task(new LoadTask(std::move(memory), std::move(segments), options));
    status = task->adopt_board(options.board);
    if (!status.ok()) return status.error();
    status = task->open_files(options);
    if (!status.ok()) return status.error();
    return task;
}

LoadTask::~LoadTask() {
    if (board_) (void)board_->fail();  // also for a load that never got to start: no watcher waits for ever
}

Status LoadTask::adopt_board(std::shared_ptr<ProgressBoard> board) {
    std::vector<std::uint64_t> lengths;
    for (const Segment& segment : segments_) lengths.push_back(segment.length);
    if (board == nullptr) {
        Result<std::shared_ptr<ProgressBoard>> own = ProgressBoard::create(std::move(lengths));
        if (!own) return own.error();
        board = std::move(own.value());
    } else if (board->lengths() != lengths) {
        return invalid("the progress board's chunks are not the job's segments");
    }
    board_ = std::move(board);
    return Done{};
}

Status LoadTask::open_files(const LoadOptions& options) {
    const PositionalRead read = options.read_call != nullptr ? options.read_call : static_cast<PositionalRead>(::pread);
    std::unordered_map<std::string, std::size_t> known;
    for (const Segment& segment : segments_) {
        const auto [entry, is_new] = known.emplace(segment.path, files_.size());
        if (is_new) {
            Result<SourceFile> file = SourceFile::open(segment.path, options.direct, read);
            if (!file) return file.error();
            files_.push_back(std::move(file.value()));
        }
        file_of_.push_back(entry->second);
    }
    return Done{};
}

std::size_t LoadTask::direct_files() const {
    return static_cast<std::size_t>(
        std::count_if(files_.begin(), files_.end(), [](const SourceFile& file) { return file.is_direct(); }));
}

std::string LoadTask::first_buffered() const {
    for (const SourceFile& file : files_)
        if (!file.is_direct()) return file.path();
    return "";
}

const char* LoadTask::io_mode() const {
    const std::size_t direct = direct_files();
    if (direct == files_.size()) return "direct";
    return direct == 0 ? "buffered" : "mixed";
}

std::byte* LoadTask::memory_of(const Block& block) const {
    return memory_->data() + segments_[block.segment].arena_offset + block.offset;
}

std::optional<ReadRequest> LoadTask::request_for(std::size_t index) const {
    const Block& block = plan_.blocks[index];
    const SourceFile& file = files_[file_of_[block.segment]];
    if (!block.is_aligned || !file.is_direct()) return std::nullopt;
    return ReadRequest{file.direct_fd(), memory_of(block), block.length,
                       segments_[block.segment].file_offset + block.offset, index};
}

Status LoadTask::read_now(std::size_t index, std::uint64_t done) {
    const Block& block = plan_.blocks[index];
    note_read();
    return files_[file_of_[block.segment]].read(memory_of(block) + done, block.length - done,
                                                segments_[block.segment].file_offset + block.offset + done);
}

void LoadTask::finish(std::size_t index, const Status& status) {
    const std::size_t segment = plan_.blocks[index].segment;
    if (status.ok()) {
        sum(index);
    } else if (status.error().code == ErrorCode::read_failed) {
        must_be_read_again_[segment].store(true, std::memory_order_relaxed);
    } else {
        return fail(segment, status.error());
    }
    // The last of its workers sees what the others have written: their sums, and that one of them failed.
    if (blocks_left_[segment].fetch_sub(1, std::memory_order_acq_rel) == 1) finish_segment(segment);
}

void LoadTask::sum(std::size_t index) {
    const Block& block = plan_.blocks[index];
    if (!is_verified(block.segment)) return;
    const ThreadTime began;
    block_crc32c_[index] = crc32c(memory_of(block), block.length);
    checksum_ns_.fetch_add(began.elapsed_ns(), std::memory_order_relaxed);
}

void LoadTask::finish_segment(std::size_t segment) {
    const bool must_be_read_again = must_be_read_again_[segment].load(std::memory_order_relaxed);
    if (!must_be_read_again && verify(segment).ok()) {
        (void)board_->mark_done(segment);  // cannot fail: the index is one of its own
        return;
    }
    // A flipped bit on the bus passes the second time; one on the disk does not.
    const Status status = read_segment_again(segment);
    if (!status.ok()) return fail(segment, status.error());
    {
        const std::lock_guard lock(mutex_);
        read_again_.push_back(segment);
    }
    (void)board_->mark_done(segment);
}

Status LoadTask::read_segment_again(std::size_t segment) {
    for (std::size_t block = plan_.first_block[segment]; block < plan_.first_block[segment + 1]; ++block) {
        if (is_stopped()) return cancelled();
        Status status = read_now(block, 0);
        if (!status.ok()) return status;
        sum(block);
    }
    return verify(segment);
}

Status LoadTask::verify(std::size_t index) const {
    if (!is_verified(index)) return Done{};
    const Segment& segment = segments_[index];
    std::uint32_t crc = 0;
    for (std::size_t block = plan_.first_block[index]; block < plan_.first_block[index + 1]; ++block)
        crc = crc32c_joined(crc, block_crc32c_[block], plan_.blocks[block].length);
    if (crc == *segment.crc32c) return Done{};
    return Error{ErrorCode::checksum_mismatch,
                 "the bytes of " + segment.path + " from " + std::to_string(segment.file_offset) + " to " +
                     std::to_string(segment.file_offset + segment.length) + " differ from their checksum",
                 0, segment.path, std::nullopt};
}

void LoadTask::fail(std::size_t segment, Error error) {
    stop();
    error.chunk = segment;
    const std::lock_guard lock(mutex_);
    // The first real failure is the one to tell; the cancellations it causes elsewhere are not.
    if (!error_ || (error_->code == ErrorCode::cancelled && error.code != ErrorCode::cancelled))
        error_ = std::move(error);
}

void LoadTask::populate() {
    for (std::size_t index = next_populated_++; index < segments_.size() && !is_stopped(); index = next_populated_++) {
        const Segment& segment = segments_[index];
        const Status status = memory_->populate(segment.arena_offset, segment.length, 1);
        if (!status.ok()) return fail(index, status.error());
    }
}

std::optional<Error> LoadTask::outcome() const {
    const std::lock_guard lock(mutex_);
    if (is_all_there()) return std::nullopt;
    return error_ ? *error_ : cancelled();
}

std::vector<std::uint64_t> LoadTask::read_again() const {
    const std::lock_guard lock(mutex_);
    std::vector<std::uint64_t> sorted = read_again_;
    std::sort(sorted.begin(), sorted.end());
    return sorted;
}

}  // namespace firstlight
