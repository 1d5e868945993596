#include "load_job.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "load_worker.hpp"
#include "ring.hpp"
#include "thread_time.hpp"

namespace firstlight {
namespace {

// Blocking readers sleep most of the time: four keep a device of several GB/s busy whatever the machine.
constexpr unsigned kCallThreads = 4;

// A ring's thread has nothing to do but to sum, at 10 GB/s and more. Two, so that one which others keep off its
// core does not hold the load up.
unsigned ring_threads() { return std::clamp(std::thread::hardware_concurrency() / 4, 2U, 4U); }

// Faulting memory in is the kernel's work and runs in parallel, but the readers need a core too.
unsigned populating_threads() { return std::clamp(std::thread::hardware_concurrency() / 2, 1U, 4U); }

std::span<std::byte> span_of(const Mapping& memory, const std::vector<Segment>& segments) {
    std::uint64_t begin = memory.size_bytes();
    std::uint64_t end = 0;
    for (const Segment& segment : segments) {
        begin = std::min(begin, segment.arena_offset);
        end = std::max(end, segment.arena_offset + segment.length);
    }
    if (begin >= end) return {};
    return {memory.data() + begin, end - begin};
}

}  // namespace

std::string_view name_of(Backend backend) {
    switch (backend) {
        case Backend::automatic: return "auto";
        case Backend::io_uring: return "io_uring";
        case Backend::threads: return "threads";
    }
    return "unknown";
}

LoadJob::LoadJob(std::unique_ptr<LoadTask> task) : process_(::getpid()), task_(std::move(task)) {}

LoadJob::~LoadJob() {
    if (::getpid() != process_) {
        // The threads are not here, so they cannot be joined, and what they hold is the parent's.
        (void)new std::vector<std::jthread>(std::move(pool_));
        return;
    }
    cancel();
}

Result<std::unique_ptr<LoadJob>> LoadJob::start(std::shared_ptr<Mapping> memory, std::vector<Segment> segments,
                                                const LoadOptions& options) {
    const std::shared_ptr<Mapping> held = memory;
    Result<std::unique_ptr<LoadTask>> task = LoadTask::create(std::move(memory), std::move(segments), options);
    if (!task) return task.error();
    std::unique_ptr<LoadJob> job(new LoadJob(std::move(task.value())));
    if (!job->finished_event_.is_open())
        return system_failure(ErrorCode::out_of_memory, "eventfd", errno);
    Status status = job->open_queues(options, *held);
    if (status.ok()) status = job->start_threads(options);
    if (!status.ok()) return status.error();
    return job;
}

Status LoadJob::open_queues(const LoadOptions& options, const Mapping& memory) {
    if (options.backend == Backend::threads) return Done{};
    // Without direct reads a ring would hand each one to a thread of the kernel's.
    if (options.backend == Backend::automatic && task_->direct_files() == 0) return Done{};
    const unsigned wanted = options.threads > 0 ? options.threads : ring_threads();
    const unsigned workers = std::clamp<unsigned>(wanted, 1, options.queue_depth);
    depth_ = (options.queue_depth + workers - 1) / workers;
    OpenReadQueue open = options.open_queue;
    if (!open) {
        const std::span<std::byte> pinned =
            options.registered ? span_of(memory, task_->segments()) : std::span<std::byte>();
        open = [pinned](unsigned depth) { return open_ring(depth, pinned); };
    }
    for (unsigned i = 0; i < workers; ++i) {
        Result<std::unique_ptr<ReadQueue>> queue = open(depth_);
        if (queue) {
            queues_.push_back(std::move(queue.value()));
            continue;
        }
        if (queues_.empty() && options.backend == Backend::io_uring) return queue.error();
        if (queues_.empty()) why_no_ring_ = queue.error().message;
        break;
    }
    has_ring_ = !queues_.empty();
    return Done{};
}

Status LoadJob::start_threads(const LoadOptions& options) {
    const std::size_t readers =
        has_ring_ ? queues_.size() : std::max<std::size_t>(options.threads > 0 ? options.threads : kCallThreads, 1);
    const std::size_t populating = options.populate ? populating_threads() : 0;
    workers_left_ = readers + populating;
    Status status = Done{};
    for (std::size_t i = 0; i < populating && status.ok(); ++i) status = start_thread([this] { task_->populate(); });
    for (std::unique_ptr<ReadQueue>& queue : queues_) {
        if (!status.ok()) break;
        status = start_thread([this, own = std::shared_ptr<ReadQueue>(std::move(queue))] {
            if (!read_by_queue(*task_, *own, depth_)) has_lost_ring_.store(true);
        });
    }
    if (!has_ring_)
        for (std::size_t i = 0; i < readers && status.ok(); ++i) status = start_thread([this] { read_by_calls(*task_); });
    queues_.clear();
    return status;
}

template <class Work>
Status LoadJob::start_thread(Work work) {
    try {
        pool_.emplace_back([this, work = std::move(work)] {
            const ThreadTime time;
            work();
            leave(static_cast<double>(time.elapsed_ns()) * 1e-9);
        });
    } catch (const std::system_error& failure) {  // std::jthread can only say so by throwing
        return system_failure(ErrorCode::out_of_memory, "start a reader thread", failure.code().value());
    }
    return Done{};
}

void LoadJob::leave(double cpu_seconds) {
    const std::lock_guard lock(mutex_);
    report_.cpu_seconds += cpu_seconds;
    if (--workers_left_ > 0) return;
    report_.size_bytes = bytes_total();
    report_.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began_).count();
    report_.checksum_seconds = task_->checksum_seconds();
    report_.io_mode = io_mode();
    report_.backend = backend();
    report_.read_again = task_->read_again();
    if (task_->outcome()) (void)task_->board().fail();
    finished_ = true;
    finished_event_.set();
    changed_.notify_all();
}

std::string_view LoadJob::backend() const {
    if (!has_ring_) return name_of(Backend::threads);
    return has_lost_ring_.load() ? "mixed" : name_of(Backend::io_uring);
}

bool LoadJob::is_done() const {
    const std::lock_guard lock(mutex_);
    return finished_;
}

bool LoadJob::wait_for(std::chrono::nanoseconds timeout) const {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, timeout, [this] { return finished_; });
}

Result<LoadReport> LoadJob::result() const {
    if (const std::optional<Error> error = task_->outcome()) return *error;
    const std::lock_guard lock(mutex_);
    return report_;
}

}  // namespace firstlight
