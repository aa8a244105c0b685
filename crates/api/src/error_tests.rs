use std::io;

use sandpail_daemon::{MountError, MountErrorKind};
use serde_json::{Value, json};

use super::*;

#[track_caller]
fn check(error: ApiError, status: u16, body: Value) {
    let Answer { status: found, body: said } = answer(&error);
    assert_eq!((found.as_u16(), serde_json::to_value(said).unwrap()), (status, body), "{error:?}");
}

fn errno(operation: &'static str, path: &str, errno: Errno) -> SandboxError {
    let source = io::Error::from_raw_os_error(errno.raw_os_error());
    SandboxError::File { operation, path: path.into(), source }
}

#[test]
fn the_common_ones() {
    check(ApiError::Unauthorized, 401, json!({"error": "Unauthorized", "code": "unauthorized"}));
    check(ApiError::NoRoute, 404, json!({"error": "Not found", "code": "not_found"}));
    check(ApiError::Invalid("x".into()), 400, json!({"error": "x", "code": "invalid_request"}));
    check(ApiError::Outside("y"), 403, json!({"error": "y", "code": "invalid_request"}));
    let full = DaemonError::Capacity("instance limit reached: 4 sandboxes".into());
    for operation in [Operation::Start, Operation::Mount, Operation::Pool] {
        let full = match &full {
            DaemonError::Capacity(text) => DaemonError::Capacity(text.clone()),
            _ => unreachable!(),
        };
        check(
            operation.failed(full),
            503,
            json!({"error": "instance limit reached: 4 sandboxes", "code": "capacity_exceeded"}),
        );
    }
    check(
        Operation::Start.failed(SandboxError::Host("no user namespaces".into())),
        502,
        json!({"error": "pool error: no user namespaces", "code": "pool_error"}),
    );
}

#[test]
fn reading_and_writing() {
    check(
        Operation::Read.failed(SandboxError::NotFound { path: "/workspace/a".into() }),
        404,
        json!({"error": "File not found: /workspace/a", "code": "workspace_read_not_found", "errno": "ENOENT",
            "path": "/workspace/a"}),
    );
    check(
        Operation::Read.failed(errno("read", "/workspace/d", Errno::ISDIR)),
        502,
        json!({"error": "read failed: /workspace/d: Is a directory", "code": "exec_transport_error", "errno": "EISDIR",
            "path": "/workspace/d"}),
    );
    check(
        Operation::Write.failed(errno("write", "/data/a", Errno::ROFS)),
        502,
        json!({"error": "write failed: /data/a: Read-only filesystem", "code": "workspace_archive_write_error",
            "errno": "EROFS", "path": "/data/a"}),
    );
    check(
        Operation::Write.failed(SandboxError::TooLarge { len: 11, limit: 10 }),
        413,
        json!({"error": "payload too large: 11 bytes exceeds the 10-byte limit", "code": "payload_too_large"}),
    );
    check(
        Operation::File("mkdir").failed(errno("mkdir", "/a", Errno::EXIST)),
        502,
        json!({"error": "mkdir failed: /a: File exists", "code": "file_error", "errno": "EEXIST", "path": "/a"}),
    );
}

#[test]
fn sessions_and_archives() {
    check(
        Operation::SessionCreate.failed(SandboxError::SessionExists { id: "s".into() }),
        502,
        json!({"error": "session create failed: Session 's' already exists", "code": "session_error"}),
    );
    check(
        Operation::SessionDelete.failed(SandboxError::NoSession { id: "s".into() }),
        502,
        json!({"error": "session delete failed: Session 's' not found", "code": "session_error"}),
    );
    check(
        Operation::Terminal.failed(SandboxError::Exec { message: "no shell".into() }),
        502,
        json!({"error": "terminal failed: no shell", "code": "exec_transport_error"}),
    );
    let broken = || SandboxError::Archive { exit: 2, message: "not a tar".into() };
    check(
        Operation::Persist.failed(broken()),
        502,
        json!({"error": "tar failed (exit 2): not a tar", "code": "workspace_archive_read_error"}),
    );
    check(
        Operation::Hydrate.failed(broken()),
        502,
        json!({"error": "tar extract failed (exit 2): not a tar", "code": "workspace_archive_write_error"}),
    );
    check(
        Operation::Persist.failed(SandboxError::Gone),
        502,
        json!({"error": "persist failed: the sandbox has ended", "code": "workspace_archive_read_error"}),
    );
    check(
        Operation::Hydrate.failed(SandboxError::TooLarge { len: 11, limit: 10 }),
        400,
        json!({"error": "tar payload too large: 11 bytes exceeds the 10-byte limit", "code": "invalid_request"}),
    );
}

#[test]
fn mounts_carry_the_classes_of_the_sdk() {
    let table = [
        (MountErrorKind::InvalidConfig, "InvalidMountConfigError", "INVALID_MOUNT_CONFIG"),
        (MountErrorKind::MissingCredentials, "MissingCredentialsError", "MISSING_CREDENTIALS"),
        (MountErrorKind::MountFailed, "S3FSMountError", "S3FS_MOUNT_ERROR"),
        (MountErrorKind::UnmountFailed, "BucketUnmountError", "BUCKET_UNMOUNT_ERROR"),
        (MountErrorKind::Other, "BucketMountError", "BUCKET_MOUNT_ERROR"),
    ];
    for (kind, name, sdk_code) in table {
        let error = || MountError { kind, message: "Prefix must start with '/': \"x\"".into() };
        check(
            Operation::Mount.failed(error()),
            502,
            json!({"error": "mount failed: Prefix must start with '/': \"x\"", "code": "mount_error", "name": name,
                "sdkCode": sdk_code}),
        );
        check(
            Operation::Unmount.failed(error()),
            502,
            json!({"error": "unmount failed: Prefix must start with '/': \"x\"", "code": "unmount_error", "name": name,
                "sdkCode": sdk_code}),
        );
    }
    check(
        Operation::Unmount.failed(SandboxError::Busy { path: "/d".into(), users: vec!["python (pid 12)".into()] }),
        502,
        json!({"error": "unmount failed: /d is in use by python (pid 12)", "code": "unmount_error",
            "name": "BucketUnmountError", "sdkCode": "BUCKET_UNMOUNT_ERROR"}),
    );
}

#[test]
fn processes_and_objects() {
    check(
        Operation::Process("process").failed(SandboxError::NoProcess { id: "p".into() }),
        404,
        json!({"error": "Process 'p' not found", "code": "process_not_found"}),
    );
    check(
        Operation::Object("get").failed(DaemonError::NoObject { key: "k".into() }),
        404,
        json!({"error": "no object has the key \"k\"", "code": "object_not_found"}),
    );
    check(
        Operation::Object("get").failed(DaemonError::Bucket("access denied".into())),
        502,
        json!({"error": "get failed: access denied", "code": "bucket_error"}),
    );
}
