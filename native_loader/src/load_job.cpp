#include "load_job.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <system_error>
#include <unordered_map>
#include <utility>

#include "crc32c.hpp"

namespace firstlight {
namespace {

// One read reaches the device's full rate at this size, and its bytes are still cache-hot for the checksum.
constexpr std::uint64_t kReadBytes = std::uint64_t{4} << 20;

Error invalid(const std::string& message) {
    return Error{ErrorCode::invalid_argument, message, 0, "", std::nullopt};
}

}  // namespace

LoadJob::LoadJob(std::shared_ptr<Mapping> memory, std::vector<Segment> segments, const LoadOptions& options)
    : memory_(std::move(memory)), segments_(std::move(segments)), populate_(options.populate) {}

LoadJob::~LoadJob() {
    cancel();
    pool_.clear();
    if (board_) (void)board_->fail();  // also for a job that never got to start: no watcher waits for ever
}

Result<std::unique_ptr<LoadJob>> LoadJob::start(std::shared_ptr<Mapping> memory, std::vector<Segment> segments,
                                                const LoadOptions& options) {
    std::unique_ptr<LoadJob> job(new LoadJob(std::move(memory), std::move(segments), options));
    if (!job->finished_event_.is_open())
        return system_failure(ErrorCode::out_of_memory, "eventfd", errno);
    Status status = job->check_segments();
    if (!status.ok()) return status.error();
    for (const Segment& segment : job->segments_) job->bytes_total_ += segment.length;
    status = job->adopt_board(options.board);
    if (!status.ok()) return status.error();
    status = job->open_files(options);
    if (!status.ok()) return status.error();
    const std::size_t workers = std::clamp<std::size_t>(job->segments_.size(), 1, std::max(options.threads, 1U));
    job->workers_left_ = workers;
    for (std::size_t i = 0; i < workers; ++i) {
        try {
            job->pool_.emplace_back([raw = job.get()] { raw->work(); });
        } catch (const std::system_error& failure) {  // std::jthread can only say so by throwing
            job->cancel();
            return system_failure(ErrorCode::out_of_memory, "start a reader thread", failure.code().value());
        }
    }
    return job;
}

Status LoadJob::check_segments() const {
    if (memory_->access() != Access::read_write) return invalid("the memory is mapped for reading only");
    const auto largest = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
    for (const Segment& segment : segments_) {
        if (segment.length == 0) return invalid("a segment of " + segment.path + " is empty");
        if (segment.file_offset > largest || segment.length > largest - segment.file_offset)
            return invalid("a segment of " + segment.path + " overflows");
        if (!memory_->contains(segment.arena_offset, segment.length))
            return invalid("a segment of " + segment.path + " lies outside of the arena");
    }
    return Done{};
}

Status LoadJob::adopt_board(std::shared_ptr<ProgressBoard> board) {
    std::vector<std::uint64_t> lengths;
    for (const Segment& segment : segments_) lengths.push_back(segment.length);
    if (board == nullptr) {
        Result<std::shared_ptr<ProgressBoard>> own = ProgressBoard::create(std::move(lengths));
        if (!own) return own.error();
        board_ = std::move(own.value());
        return Done{};
    }
    if (board->lengths() != lengths) return invalid("the progress board's chunks are not the job's segments");
    board_ = std::move(board);
    return Done{};
}

Status LoadJob::open_files(const LoadOptions& options) {
    const PositionalRead read = options.read != nullptr ? options.read : static_cast<PositionalRead>(::pread);
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

void LoadJob::work() {
    while (!stop_.load()) {
        const std::size_t index = next_.fetch_add(1);
        if (index >= segments_.size()) break;
        Status status = load(index);
        if (!status.ok()) {
            fail(index, status.error());
            break;
        }
        (void)board_->mark_done(index);  // cannot fail: the index is one of its own
    }
    leave();
}

Status LoadJob::load(std::size_t index) {
    Status status = load_once(index);
    if (status.ok()) return status;
    const ErrorCode code = status.error().code;
    if (code != ErrorCode::checksum_mismatch && code != ErrorCode::read_failed) return status;
    // A flipped bit on the bus passes the second time; one on the disk does not.
    status = load_once(index);
    if (status.ok()) {
        const std::lock_guard lock(mutex_);
        report_.read_again.push_back(index);
    }
    return status;
}

Status LoadJob::load_once(std::size_t index) {
    const Segment& segment = segments_[index];
    SourceFile& file = files_[file_of_[index]];
    std::byte* const into = memory_->data() + segment.arena_offset;
    if (populate_) {
        Status status = memory_->populate(segment.arena_offset, segment.length, 1);
        if (!status.ok()) return status;
    }
    std::uint32_t crc = 0;
    for (std::uint64_t at = 0; at < segment.length; at += kReadBytes) {
        if (stop_.load()) return Error{ErrorCode::cancelled, "the load was cancelled", 0, "", std::nullopt};
        const std::uint64_t length = std::min(kReadBytes, segment.length - at);
        Status status = file.read(into + at, length, segment.file_offset + at);
        if (!status.ok()) return status;
        if (segment.crc32c) crc = crc32c(into + at, length, crc);
    }
    if (segment.crc32c && crc != *segment.crc32c)
        return Error{ErrorCode::checksum_mismatch,
                     "the bytes of " + segment.path + " from " + std::to_string(segment.file_offset) + " to " +
                         std::to_string(segment.file_offset + segment.length) + " differ from their checksum",
                     0, segment.path, std::nullopt};
    return Done{};
}

void LoadJob::fail(std::size_t index, Error error) {
    stop_.store(true);
    error.chunk = index;
    const std::lock_guard lock(mutex_);
    // The first real failure is the one to tell; the cancellations it causes elsewhere are not.
    if (!error_ || (error_->code == ErrorCode::cancelled && error.code != ErrorCode::cancelled))
        error_ = std::move(error);
}

void LoadJob::leave() {
    const std::lock_guard lock(mutex_);
    if (--workers_left_ > 0) return;
    if (!error_ && board_->bytes_done() < bytes_total_)
        error_ = Error{ErrorCode::cancelled, "the load was cancelled", 0, "", std::nullopt};
    report_.size_bytes = bytes_total_;
    report_.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began_).count();
    report_.io_mode = io_mode();
    std::sort(report_.read_again.begin(), report_.read_again.end());
    if (error_) (void)board_->fail();
    finished_ = true;
    finished_event_.set();
    changed_.notify_all();
}

const char* LoadJob::io_mode() const {
    const auto direct = std::count_if(files_.begin(), files_.end(), [](const SourceFile& f) { return f.is_direct(); });
    if (static_cast<std::size_t>(direct) == files_.size()) return "direct";
    return direct == 0 ? "buffered" : "mixed";
}

bool LoadJob::is_done() const {
    const std::lock_guard lock(mutex_);
    return finished_;
}

bool LoadJob::wait_for(std::chrono::nanoseconds timeout) const {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, timeout, [this] { return finished_; });
}

bool LoadJob::wait_prefix_for(std::uint64_t bytes, std::chrono::nanoseconds timeout) const {
    return board_->wait_prefix_for(bytes, timeout);
}

Result<LoadReport> LoadJob::result() const {
    const std::lock_guard lock(mutex_);
    if (error_) return *error_;
    return report_;
}

}  // namespace firstlight
