// RocksDB's own FaultInjectionTestFS, with a count of the calls that change the disk, after so many of which the power is
// gone. What a file or a directory got since its last sync is then lost, all of it or a random part.

#include <atomic>
#include <memory>
#include <string>

#include "rocksdb/env.h"
#include "rocksdb/file_system.h"
#include "util/random.h"
#include "utilities/fault_injection_fs.h"

using namespace ROCKSDB_NAMESPACE;

// As db/c.cc has it, which frees what is made here.
struct rocksdb_env_t {
  Env* rep;
  bool is_default;
};

namespace {

class PowerFs;

class PowerFile : public FSWritableFileOwnerWrapper {
 public:
  PowerFile(std::unique_ptr<FSWritableFile>&& file, PowerFs* fs) : FSWritableFileOwnerWrapper(std::move(file)), fs_(fs) {}
  using FSWritableFileOwnerWrapper::Append;
  IOStatus Append(const Slice& data, const IOOptions& options, IODebugContext* dbg) override;
  IOStatus Append(const Slice& data, const IOOptions& options, const DataVerificationInfo& info, IODebugContext* dbg) override;
  IOStatus Sync(const IOOptions& options, IODebugContext* dbg) override;
  IOStatus Fsync(const IOOptions& options, IODebugContext* dbg) override;

 private:
  PowerFs* fs_;
};

class PowerDirectory : public FSDirectoryWrapper {
 public:
  PowerDirectory(std::unique_ptr<FSDirectory>&& dir, PowerFs* fs) : FSDirectoryWrapper(std::move(dir)), fs_(fs) {}
  IOStatus Fsync(const IOOptions& options, IODebugContext* dbg) override;
  IOStatus FsyncWithDirOptions(const IOOptions& options, IODebugContext* dbg, const DirFsyncOptions& dir) override;

 private:
  PowerFs* fs_;
};

class PowerFs : public FaultInjectionTestFS {
 public:
  explicit PowerFs(const std::shared_ptr<FileSystem>& base) : FaultInjectionTestFS(base) { SetInjectUnsyncedDataLoss(true); }

  void Change() {
    if (changes_.fetch_add(1) == stop_after_.load()) SetFilesystemActive(false, IOStatus::IOError("the power is gone"));
  }

  IOStatus NewWritableFile(const std::string& name, const FileOptions& options, std::unique_ptr<FSWritableFile>* result,
                           IODebugContext* dbg) override {
    Change();
    IOStatus status = FaultInjectionTestFS::NewWritableFile(name, options, result, dbg);
    if (status.ok()) result->reset(new PowerFile(std::move(*result), this));
    return status;
  }

  IOStatus NewDirectory(const std::string& name, const IOOptions& options, std::unique_ptr<FSDirectory>* result,
                        IODebugContext* dbg) override {
    IOStatus status = FaultInjectionTestFS::NewDirectory(name, options, result, dbg);
    if (status.ok()) result->reset(new PowerDirectory(std::move(*result), this));
    return status;
  }

  IOStatus RenameFile(const std::string& from, const std::string& to, const IOOptions& options, IODebugContext* dbg) override {
    Change();
    return FaultInjectionTestFS::RenameFile(from, to, options, dbg);
  }

  IOStatus DeleteFile(const std::string& name, const IOOptions& options, IODebugContext* dbg) override {
    Change();
    return FaultInjectionTestFS::DeleteFile(name, options, dbg);
  }

  std::atomic<uint64_t> changes_{0};
  std::atomic<uint64_t> stop_after_{UINT64_MAX};
};

IOStatus PowerFile::Append(const Slice& data, const IOOptions& options, IODebugContext* dbg) {
  fs_->Change();
  return FSWritableFileOwnerWrapper::Append(data, options, dbg);
}

IOStatus PowerFile::Append(const Slice& data, const IOOptions& options, const DataVerificationInfo& info, IODebugContext* dbg) {
  fs_->Change();
  return FSWritableFileOwnerWrapper::Append(data, options, info, dbg);
}

IOStatus PowerFile::Sync(const IOOptions& options, IODebugContext* dbg) {
  fs_->Change();
  return FSWritableFileOwnerWrapper::Sync(options, dbg);
}

IOStatus PowerFile::Fsync(const IOOptions& options, IODebugContext* dbg) {
  fs_->Change();
  return FSWritableFileOwnerWrapper::Fsync(options, dbg);
}

IOStatus PowerDirectory::Fsync(const IOOptions& options, IODebugContext* dbg) {
  fs_->Change();
  return FSDirectoryWrapper::Fsync(options, dbg);
}

IOStatus PowerDirectory::FsyncWithDirOptions(const IOOptions& options, IODebugContext* dbg, const DirFsyncOptions& dir) {
  fs_->Change();
  return FSDirectoryWrapper::FsyncWithDirOptions(options, dbg, dir);
}

}  // namespace

struct longboat_power {
  std::shared_ptr<PowerFs> fs;
};

extern "C" {

longboat_power* longboat_power_new() { return new longboat_power{std::make_shared<PowerFs>(FileSystem::Default())}; }

void longboat_power_free(longboat_power* power) { delete power; }

rocksdb_env_t* longboat_power_env(longboat_power* power) { return new rocksdb_env_t{NewCompositeEnv(power->fs).release(), false}; }

uint64_t longboat_power_changes(const longboat_power* power) { return power->fs->changes_.load(); }

void longboat_power_stop_after(longboat_power* power, uint64_t changes) { power->fs->stop_after_.store(changes); }

void longboat_power_off(longboat_power* power) { power->fs->SetFilesystemActive(false, IOStatus::IOError("the power is gone")); }

bool longboat_power_is_off(const longboat_power* power) { return !power->fs->IsFilesystemActive(); }

// With a seed of 0 all that was not synced is lost, else a random part of it. Every file must be closed.
bool longboat_power_restore(longboat_power* power, uint32_t seed) {
  PowerFs& fs = *power->fs;
  fs.stop_after_.store(UINT64_MAX);
  IOStatus dropped;
  if (seed == 0) {
    dropped = fs.DropUnsyncedFileData();
  } else {
    Random random(seed);
    dropped = fs.DropRandomUnsyncedFileData(&random);
  }
  fs.SetFilesystemActive(true);
  IOStatus removed = fs.DeleteFilesCreatedAfterLastDirSync(IOOptions(), nullptr);
  fs.ResetState();
  return dropped.ok() && removed.ok();
}

}  // extern "C"
