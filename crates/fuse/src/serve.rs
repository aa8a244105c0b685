//! One thread that reads the device: it hands a request to the file system, and so on until the file system is gone. What is
//! done with a request is the same for those that come by a ring.

use std::io;
use std::ops::ControlFlow;

use crate::reply::{Due, ReplyDirectory, ReplyDirectoryPlus};
use crate::request::{Dialect, Operation, Refusal, Request, parse};
use crate::{Agreed, Device, Errno, Filesystem};

pub(crate) struct Server<F> {
    pub(crate) filesystem: F,
    pub(crate) device: Device,
    pub(crate) agreed: Agreed,
    /// Nobody else is served; `None` if all are.
    pub(crate) owner: Option<u32>,
}

impl<F: Filesystem> Server<F> {
    /// Serves until the file system is gone.
    ///
    /// # Errors
    /// When the device fails, or gives what is no request.
    pub(crate) fn run(&self) -> io::Result<()> {
        // Not zeros, which are pages that are not there before they are touched: where the kernel has to get one while it copies a
        // request, and this process is killed just then, it ends that request with `EIO` instead of keeping it for the next one.
        let mut buffer = vec![u8::MAX; self.agreed.buffer_len()];
        let dialect = self.agreed.dialect();
        while let Some(len) = self.device.receive(&mut buffer)? {
            if self.serve(&buffer[..len], dialect)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Breaks at the kernel's last word.
    fn serve(&self, message: &[u8], dialect: Dialect) -> io::Result<ControlFlow<()>> {
        let Some((request, operation)) = parse(message, dialect) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the device has given what is no request"));
        };
        Ok(self.answer(&request, operation, || Due::new(&self.device, request.unique())))
    }

    /// Breaks at the kernel's last word. `due` is called at once, or never where no answer is wanted.
    pub(crate) fn answer(
        &self,
        request: &Request,
        operation: Result<Operation<'_>, Refusal>,
        due: impl FnOnce() -> Due,
    ) -> ControlFlow<()> {
        match operation {
            Ok(Operation::Destroy) => {
                due().done();
                return ControlFlow::Break(());
            }
            Ok(operation) => self.dispatch(request, operation, due),
            Err(refusal) => {
                tracing::debug!(opcode = request.opcode(), ?refusal, "a request that is not served");
                if !request.is_unanswered() {
                    due().error(refusal.errno());
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// Without `allow_other` the kernel keeps others away, except where an administrator has told it not to
    /// (`allow_sys_admin_access`). What it asks for on its own account comes with any user.
    fn is_allowed(&self, request: &Request, operation: &Operation<'_>) -> bool {
        self.owner.is_none_or(|owner| owner == request.uid())
            || matches!(
                operation,
                Operation::Read(_)
                    | Operation::Write(_)
                    | Operation::Readdir(_)
                    | Operation::Readdirplus(_)
                    | Operation::Fsync { .. }
                    | Operation::Fsyncdir { .. }
                    | Operation::Release { .. }
                    | Operation::Releasedir { .. }
                    | Operation::Forget { .. }
                    | Operation::BatchForget(_)
                    | Operation::Interrupt { .. }
                    | Operation::Init(_)
                    | Operation::Destroy
            )
    }

    fn dispatch(&self, request: &Request, operation: Operation<'_>, due: impl FnOnce() -> Due) {
        let fs = &self.filesystem;
        if !self.is_allowed(request, &operation) {
            return due().error(Errno::ACCESS);
        }
        match operation {
            Operation::Lookup { name } => fs.lookup(request, name, due().into()),
            Operation::Forget { count } => fs.forget(request.ino(), count),
            Operation::BatchForget(forgets) => forgets.for_each(|(ino, count)| fs.forget(ino, count)),
            Operation::Getattr { handle } => fs.getattr(request, handle, due().into()),
            Operation::Setattr(set) => fs.setattr(request, set, due().into()),
            Operation::Readlink => fs.readlink(request, due().into()),
            Operation::Symlink { name, target } => fs.symlink(request, name, target, due().into()),
            Operation::Mknod(make) => fs.mknod(request, make, due().into()),
            Operation::Mkdir(make) => fs.mkdir(request, make, due().into()),
            Operation::Unlink { name } => fs.unlink(request, name, due().into()),
            Operation::Rmdir { name } => fs.rmdir(request, name, due().into()),
            Operation::Rename(rename) => fs.rename(request, rename, due().into()),
            Operation::Link { ino, name } => fs.link(request, ino, name, due().into()),
            Operation::Open { flags } => fs.open(request, flags, due().into()),
            Operation::Create { make, flags } => fs.create(request, make, flags, due().into()),
            Operation::Read(read) => fs.read(request, read, due().into()),
            Operation::Write(write) => fs.write(request, write, due().into()),
            Operation::Flush { handle } => fs.flush(request, handle, due().into()),
            Operation::Release { handle } => fs.release(request, handle, due().into()),
            Operation::Fsync { handle, data_only } => fs.fsync(request, handle, data_only, due().into()),
            Operation::Opendir { flags } => fs.opendir(request, flags, due().into()),
            Operation::Readdir(read) => fs.readdir(request, read, ReplyDirectory::new(due(), read.len)),
            Operation::Readdirplus(read) => fs.readdirplus(request, read, ReplyDirectoryPlus::new(due(), read.len)),
            Operation::Releasedir { handle } => fs.releasedir(request, handle, due().into()),
            Operation::Fsyncdir { handle, data_only } => fs.fsyncdir(request, handle, data_only, due().into()),
            Operation::Statfs => fs.statfs(request, due().into()),
            Operation::Setxattr(set) => fs.setxattr(request, set, due().into()),
            Operation::Getxattr { name, len_max } => fs.getxattr(request, name, len_max, due().into()),
            Operation::Listxattr { len_max } => fs.listxattr(request, len_max, due().into()),
            Operation::Removexattr { name } => fs.removexattr(request, name, due().into()),
            Operation::Fallocate(range) => fs.fallocate(request, range, due().into()),
            Operation::Lseek { handle, offset, whence } => fs.lseek(request, handle, offset, whence, due().into()),
            Operation::CopyFileRange(copy) => fs.copy_file_range(request, copy, due().into()),
            // The kernel then sends none any more. It would not say which signal came.
            Operation::Interrupt { .. } => due().error(Errno::NOSYS),
            // It was said before.
            Operation::Init(_) | Operation::Destroy => due().error(Errno::IO),
        }
    }
}
