//! The one place where a failure becomes an errno.

use sandpail_store::StoreError;

use crate::FsError;

/// An error number, by the kernel's names. The adapter turns it into its transport's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, clippy::upper_case_acronyms)]
pub enum Errno {
    ENOENT,
    EEXIST,
    ENOTDIR,
    EISDIR,
    ENOTEMPTY,
    EROFS,
    EBADF,
    EPERM,
    EACCES,
    EOPNOTSUPP,
    EINVAL,
    ENAMETOOLONG,
    EFBIG,
    ENOSPC,
    ENODATA,
    ERANGE,
    EBUSY,
    EXDEV,
    ESTALE,
    EIO,
    ETIMEDOUT,
}

/// Chooses the errno of a failure.
pub fn errno(error: &FsError) -> Errno {
    match error {
        FsError::NotFound { .. } => Errno::ENOENT,
        FsError::Exists { .. } => Errno::EEXIST,
        FsError::NotADirectory => Errno::ENOTDIR,
        FsError::IsADirectory => Errno::EISDIR,
        FsError::NotEmpty => Errno::ENOTEMPTY,
        FsError::ReadOnly => Errno::EROFS,
        FsError::BadHandle => Errno::EBADF,
        FsError::NotPermitted { .. } => Errno::EPERM,
        FsError::Unsupported { .. } => Errno::EOPNOTSUPP,
        FsError::Invalid { .. } => Errno::EINVAL,
        FsError::NameTooLong { .. } => Errno::ENAMETOOLONG,
        FsError::TooLarge { .. } => Errno::EFBIG,
        FsError::NoSpace { .. } => Errno::ENOSPC,
        FsError::NoAttribute => Errno::ENODATA,
        FsError::Range { .. } => Errno::ERANGE,
        FsError::Busy { .. } => Errno::EBUSY,
        FsError::OtherClass { .. } => Errno::EXDEV,
        // NFS users know this number for the same thing.
        FsError::Changed { .. } => Errno::ESTALE,
        FsError::Store { source, .. } => of_store(source),
        FsError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => Errno::ENOSPC,
        FsError::InUpload { .. } | FsError::Io { .. } => Errno::EIO,
    }
}

fn of_store(error: &StoreError) -> Errno {
    match error {
        StoreError::NotFound { .. } => Errno::ENOENT,
        StoreError::Precondition { .. } => Errno::ESTALE,
        StoreError::Denied { .. } | StoreError::Credentials { .. } => Errno::EACCES,
        StoreError::Unsupported { .. } => Errno::EOPNOTSUPP,
        StoreError::NoSpace { .. } => Errno::ENOSPC,
        StoreError::Unreachable { .. } | StoreError::Throttled { .. } => Errno::ETIMEDOUT,
        StoreError::NoSuchBucket { .. }
        | StoreError::Server { .. }
        | StoreError::Integrity { .. }
        | StoreError::Protocol { .. }
        | StoreError::Invalid { .. }
        | StoreError::Io { .. } => Errno::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_the_provider_is_told_apart_from_a_failure() {
        let store = |source| errno(&FsError::Store { what: "put".to_owned(), source });
        assert_eq!(store(StoreError::Denied { message: String::new() }), Errno::EACCES);
        assert_eq!(store(StoreError::Server { message: String::new() }), Errno::EIO);
        assert_eq!(store(StoreError::Precondition { what: String::new() }), Errno::ESTALE);
    }
}
