//! The state of sessions: working directory, exported variables, functions.
//!
//! There is no shell that stays: each command of a session runs in a fresh one that reads the state from a file in the
//! sandbox, runs the command (a builtin such as `cd` or `export` acts on that shell), and writes the state when it
//! exits. So a command that fails, exits or is killed cannot spoil its session: at worst the state is that of before.

/// Last line of a state that was written to its end.
pub(crate) const END_MARK: &str = "#end\n";

/// Arguments: state file, working directory for this command only (or empty), which of the daemon's environments counts now,
/// count of its variables, these as NAME=VALUE, count of variables for this command only, these, the command.
///
/// A session takes over the daemon's variables when it has not seen this environment yet; afterwards they are its own to
/// change.
pub(crate) const BASH: &str = r##"
__sp_file=$1 __sp_at=$2 __sp_now=$3 __sp_n=$4; shift 4
if [ -r "$__sp_file" ]; then . "$__sp_file"; fi
while (( __sp_n-- > 0 )); do
  if [[ ${__sp_told-} != "$__sp_now" ]]; then export "$1"; fi; shift
done
__sp_n=$1; shift
__sp_home=$PWD
if [ -n "$__sp_at" ]; then cd -- "$__sp_at" || exit 1; __sp_at=$PWD; fi
declare -A __sp_old=() __sp_new=()
while (( __sp_n-- > 0 )); do
  __sp_k=${1%%=*}
  if [[ -v $__sp_k ]]; then __sp_old[$__sp_k]=${!__sp_k}; fi
  __sp_new[$__sp_k]=${1#*=}
  export "$1"; shift
done
trap '
  __sp_code=$?
  for __sp_k in "${!__sp_new[@]}"; do
    if [[ ${!__sp_k-} == "${__sp_new[$__sp_k]}" ]]; then
      if [[ -v __sp_old[$__sp_k] ]]; then printf -v "$__sp_k" %s "${__sp_old[$__sp_k]}"; else unset "$__sp_k"; fi
    fi
  done
  if [[ -n $__sp_at && $PWD == "$__sp_at" ]]; then __sp_dir=$__sp_home; else __sp_dir=$PWD; fi
  unset SANDPAIL_COMMAND
  { export -p; declare -f; printf "__sp_told=%q\ncd -- %q 2>/dev/null || cd /workspace\n#end\n" "$__sp_now" "$__sp_dir"; } >|"${__sp_file%.state}.new"
  exit $__sp_code
' EXIT
"$@"
"##;

/// The same for shells that know nothing but POSIX. They cannot print functions, which are not kept there.
pub(crate) const SH: &str = r##"
__sp_file=$1 __sp_at=$2 __sp_now=$3 __sp_n=$4; shift 4
if [ -r "$__sp_file" ]; then . "$__sp_file"; fi
while [ "$__sp_n" -gt 0 ]; do
  if [ "${__sp_told-}" != "$__sp_now" ]; then export "$1"; fi; shift; __sp_n=$((__sp_n - 1))
done
__sp_n=$1; shift
__sp_home=$PWD
if [ -n "$__sp_at" ]; then cd -- "$__sp_at" || exit 1; __sp_at=$PWD; fi
__sp_save() {
  if [ -n "$__sp_at" ] && [ "$PWD" = "$__sp_at" ]; then cd -- "$__sp_home"; fi
  unset SANDPAIL_COMMAND
  { export -p; printf '__sp_told=%s\n' "$__sp_now"; printf 'cd -- "$PWD" 2>/dev/null || cd /workspace\n#end\n'; } >|"${__sp_file%.state}.new"
}
if [ "$__sp_n" -gt 0 ]; then
  # Variables for this command only: it runs in a copy of this shell, which changes nothing.
  ( while [ "$__sp_n" -gt 0 ]; do export "$1"; shift; __sp_n=$((__sp_n - 1)); done; "$@" )
  exit $?
fi
trap '__sp_code=$?; __sp_save; exit $__sp_code' EXIT
"$@"
"##;
