// Settings of libtorch that tch does not reach, and what its profiler tells of the operations that it runs.
#include "shared.h"

#include <ATen/Context.h>
#include <ATen/record_function.h>
#include <chrono>
#include <map>
#include <mutex>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

struct Total {
    uint64_t calls = 0;
    double seconds = 0.0;
};

// One that runs: when it began, and what those took that it called.
struct Running : at::ObserverContext {
    Clock::time_point began = Clock::now();
    double inside = 0.0;
};

std::mutex guard;
std::map<std::string, Total> totals;
thread_local std::vector<Running *> stack;

std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction &) {
    auto running = std::make_unique<Running>();
    stack.push_back(running.get());
    return running;
}

void end(const at::RecordFunction &function, at::ObserverContext *context) {
    auto *running = static_cast<Running *>(context);
    const double seconds = std::chrono::duration<double>(Clock::now() - running->began).count();
    stack.pop_back();
    if (!stack.empty()) stack.back()->inside += seconds;
    std::lock_guard lock(guard);
    Total &total = totals[function.name()];
    total.calls += 1;
    total.seconds += seconds - running->inside;
}

}  // namespace

extern "C" char *basin_allow_tf32(bool allow) {
    return basin::guarded([&] {
        at::globalContext().setAllowTF32CuBLAS(allow);
        at::globalContext().setAllowTF32CuDNN(allow);
    });
}

extern "C" void basin_compose(bool always) { basin::composed_only = always; }

extern "C" uint64_t basin_profile_begin() {
    {
        std::lock_guard lock(guard);
        totals.clear();
    }
    return at::addGlobalCallback(at::RecordFunctionCallback(&begin, &end).scopes({at::RecordScope::FUNCTION}));
}

// Lines of name, calls and seconds, to be freed by the caller.
extern "C" char *basin_profile_end(uint64_t handle) {
    at::removeCallback(handle);
    std::string text;
    std::lock_guard lock(guard);
    for (const auto &[name, total] : totals) {
        text += name + "\t" + std::to_string(total.calls) + "\t" + std::to_string(total.seconds) + "\n";
    }
    return strdup(text.c_str());
}
