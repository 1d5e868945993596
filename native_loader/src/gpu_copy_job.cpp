#include "gpu_copy_job.hpp"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

namespace firstlight {
namespace {

using std::chrono::steady_clock;

// How soon a cancellation is seen while the source is waited for.
constexpr auto kSourceSlice = std::chrono::milliseconds(20);
constexpr std::uint64_t kBounceGranuleBytes = std::uint64_t{2} << 20;

Error copy_error(ErrorCode code, const std::string& message) { return Error{code, message, 0, "", std::nullopt}; }

double copy_seconds_since(steady_clock::time_point began) {
    return std::chrono::duration<double>(steady_clock::now() - began).count();
}

}  // namespace

Result<std::unique_ptr<GpuCopyJob>> GpuCopyJob::start(std::shared_ptr<GpuMemory> target,
                                                      std::shared_ptr<Mapping> source, std::vector<GpuChunk> chunks,
                                                      std::shared_ptr<ProgressBoard> source_board,
                                                      std::shared_ptr<ProgressBoard> board,
                                                      std::shared_ptr<GpuPinning> pinning,
                                                      const GpuCopyOptions& options) {
    if (options.streams == 0 || options.depth == 0 || options.piece_bytes == 0 || options.bounce_bytes == 0 ||
        options.bounce_bytes % kBounceGranuleBytes != 0)
        return copy_error(ErrorCode::invalid_argument, "a copy needs streams, depth, and pieces in multiples of 2 MiB");
    if (pinning != nullptr && pinning->memory() != source) pinning = nullptr;
    std::unique_ptr<GpuCopyJob> job(new GpuCopyJob(std::move(target), std::move(source), std::move(chunks),
                                                   std::move(source_board), std::move(board), std::move(pinning),
                                                   options));
    if (const Status checked = job->check_chunks(); !checked) return checked.error();
    if (const Status opened = job->open_ring(); !opened) return opened.error();
    job->reaper_ = std::jthread([own = job.get()] { own->reap(); });
    job->issuer_ = std::jthread([own = job.get()] { own->issue(); });
    return job;
}

GpuCopyJob::GpuCopyJob(std::shared_ptr<GpuMemory> target, std::shared_ptr<Mapping> source,
                       std::vector<GpuChunk> chunks, std::shared_ptr<ProgressBoard> source_board,
                       std::shared_ptr<ProgressBoard> board, std::shared_ptr<GpuPinning> pinning,
                       const GpuCopyOptions& options)
    : target_(std::move(target)),
      source_(std::move(source)),
      chunks_(std::move(chunks)),
      source_board_(std::move(source_board)),
      board_(std::move(board)),
      pinning_(std::move(pinning)),
      options_(options),
      in_flight_(options.depth) {
    for (const GpuChunk& chunk : chunks_) bytes_total_ += chunk.length;
}

GpuCopyJob::~GpuCopyJob() {
    cancel();
    if (issuer_.joinable()) issuer_.join();
    if (reaper_.joinable()) reaper_.join();
}

Status GpuCopyJob::check_chunks() const {
    if (board_ == nullptr || board_->is_watcher())
        return copy_error(ErrorCode::invalid_argument, "a copy marks a progress board of this process");
    for (const GpuChunk& chunk : chunks_) {
        if (chunk.length == 0 || !source_->contains(chunk.source_offset, chunk.length))
            return copy_error(ErrorCode::invalid_argument, "a chunk is outside of the source");
        if (!target_->contains(chunk.device_offset, chunk.length))
            return copy_error(ErrorCode::invalid_argument, "a chunk is outside of the GPU memory");
        if (chunk.index >= board_->chunks())
            return copy_error(ErrorCode::invalid_argument, "a chunk is not on the progress board");
        if (source_board_ != nullptr && chunk.source_prefix_bytes > source_board_->bytes_total())
            return copy_error(ErrorCode::invalid_argument, "a chunk waits for more than its source will ever hold");
    }
    return Done{};
}

Status GpuCopyJob::open_ring() {
    Result<GpuStreams> ring = GpuStreams::create(target_->device(), options_.streams, options_.depth);
    if (!ring) return ring.error();
    ring_.emplace(std::move(ring.value()));
    return Done{};
}

void GpuCopyJob::issue() {
    const Status status = issue_all();
    const std::lock_guard lock(mutex_);
    if (!status && !error_) error_ = status.error();
    is_issuing_ = false;
    changed_.notify_all();
}

Status GpuCopyJob::issue_all() {
    const CurrentGpu current(*target_->device());
    if (!current.status()) return current.status();
    for (const GpuChunk& chunk : chunks_) {
        if (const Status there = await_source(chunk); !there) return there;
        if (const Status issued = issue_chunk(chunk); !issued) return issued;
    }
    return Done{};
}

Status GpuCopyJob::await_source(const GpuChunk& chunk) {
    const auto began = steady_clock::now();
    while (!stop_.load() && source_board_ != nullptr &&
           !source_board_->wait_prefix_for(chunk.source_prefix_bytes, kSourceSlice))
        // Looked at again: it may have come, last of all, between the wait and this.
        if (source_board_->is_ended() && source_board_->prefix_bytes() < chunk.source_prefix_bytes)
            return Error{ErrorCode::read_failed, "the bytes to copy did not arrive in memory", 0, "", chunk.index};
    if (stop_.load()) return copy_error(ErrorCode::cancelled, "the copy was cancelled");
    const std::lock_guard lock(mutex_);
    report_.waited_s += copy_seconds_since(began);
    return Done{};
}

Status GpuCopyJob::issue_chunk(const GpuChunk& chunk) {
    for (std::uint64_t at = 0; at < chunk.length;) {
        const std::uint64_t from = chunk.source_offset + at;
        const std::uint64_t length = piece_length(from, chunk.length - at);
        if (const Status slot = await_slot(); !slot) return slot;
        const InFlight piece{length, chunk.index, at + length == chunk.length};
        if (const Status issued = issue_piece(from, target_->pointer() + chunk.device_offset + at, piece); !issued)
            return issued;
        at += length;
    }
    return Done{};
}

std::uint64_t GpuCopyJob::piece_length(std::uint64_t from, std::uint64_t left) {
    std::uint64_t length = std::min(left, options_.piece_bytes);
    if (pinning_ != nullptr) length = pinning_->within_piece(from, length);
    if (pinning_ != nullptr && pinning_->is_pinned(from, length)) return length;
    open_bounce();
    return is_bounce_refused_ ? length : std::min(length, options_.bounce_bytes);
}

void GpuCopyJob::open_bounce() {
    if (bounce_ != nullptr || is_bounce_refused_) return;
    is_bounce_refused_ = true;
    const std::uint64_t size_bytes = options_.bounce_bytes * options_.depth;
    Result<Mapping> memory = Mapping::anonymous(size_bytes);
    if (!memory) return;
    auto mapping = std::make_shared<Mapping>(std::move(memory.value()));
    Result<std::shared_ptr<GpuPinning>> pinning = GpuPinning::start(target_->device(), mapping);
    if (!pinning) return;
    // Tens of MiB take milliseconds; a driver that hangs here hangs everything.
    while (!pinning.value()->wait_for(std::chrono::seconds(1))) {
    }
    if (pinning.value()->pinned_bytes() < size_bytes) return;
    bounce_ = std::move(mapping);
    bounce_pinning_ = std::move(pinning.value());
    is_bounce_refused_ = false;
}

const std::byte* GpuCopyJob::staged(std::uint64_t from, std::uint64_t length, std::size_t slot) {
    const std::byte* source = source_->data() + from;
    const bool is_pinned = pinning_ != nullptr && pinning_->is_pinned(from, length);
    const bool is_bounced = !is_pinned && bounce_ != nullptr;
    {
        const std::lock_guard lock(mutex_);
        (is_pinned ? report_.pinned_bytes : is_bounced ? report_.bounced_bytes : report_.pageable_bytes) += length;
    }
    if (!is_bounced) return source;
    std::byte* room = bounce_->data() + slot * options_.bounce_bytes;
    std::memcpy(room, source, length);
    return room;
}

Status GpuCopyJob::issue_piece(std::uint64_t from, std::uint64_t to, InFlight piece) {
    // `issued_` is written by this thread alone.
    const std::uint64_t number = issued_;
    const std::byte* source = staged(from, piece.length, number % options_.depth);
    if (const Status copied = ring_->copy(number, to, source, piece.length); !copied) return copied;
    const std::lock_guard lock(mutex_);
    in_flight_[number % options_.depth] = piece;
    ++issued_;
    changed_.notify_all();
    return Done{};
}

Status GpuCopyJob::await_slot() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return issued_ - reaped_ < options_.depth || error_; });
    if (error_) return *error_;
    if (stop_.load()) return copy_error(ErrorCode::cancelled, "the copy was cancelled");
    return Done{};
}

void GpuCopyJob::reap() {
    const CurrentGpu current(*target_->device());
    if (!current.status()) remember(current.status().error());
    while (true) {
        std::uint64_t number = 0;
        {
            std::unique_lock lock(mutex_);
            changed_.wait(lock, [&] { return issued_ > reaped_ || !is_issuing_; });
            if (issued_ == reaped_) break;
            number = reaped_;
        }
        if (const Status reaped = reap_one(number); !reaped) remember(reaped.error());
        const std::lock_guard lock(mutex_);
        ++reaped_;
        changed_.notify_all();
    }
    // A copy whose event was refused is still under way.
    ring_->drain();
    finish();
}

Status GpuCopyJob::reap_one(std::uint64_t number) {
    if (const Status arrived = ring_->wait(number); !arrived) return arrived;
    InFlight piece;
    {
        const std::lock_guard lock(mutex_);
        // After a failure what arrives may stand on a broken stream: nothing more is vouched for.
        if (error_ && error_->code != ErrorCode::cancelled) return Done{};
        piece = in_flight_[number % options_.depth];
    }
    bytes_done_.fetch_add(piece.length, std::memory_order_acq_rel);
    return piece.is_last ? board_->mark_done(piece.chunk) : Status(Done{});
}

void GpuCopyJob::remember(const Error& error) {
    const std::lock_guard lock(mutex_);
    if (!error_) error_ = error;
    changed_.notify_all();
}

void GpuCopyJob::finish() {
    bool has_failed = false;
    {
        const std::lock_guard lock(mutex_);
        report_.seconds = copy_seconds_since(began_);
        has_failed = error_.has_value();
    }
    if (has_failed) (void)board_->fail();
    const std::lock_guard lock(mutex_);
    finished_ = true;
    finished_event_.set();
    changed_.notify_all();
}

bool GpuCopyJob::is_done() const {
    const std::lock_guard lock(mutex_);
    return finished_;
}

bool GpuCopyJob::wait_for(std::chrono::nanoseconds timeout) const {
    std::unique_lock lock(mutex_);
    const auto limit = std::min<std::chrono::nanoseconds>(timeout, std::chrono::hours(2400));
    return changed_.wait_for(lock, limit, [&] { return finished_; });
}

Result<GpuCopyReport> GpuCopyJob::result() const {
    const std::lock_guard lock(mutex_);
    if (error_) return *error_;
    return report_;
}

}  // namespace firstlight
