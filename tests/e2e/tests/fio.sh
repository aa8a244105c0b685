# Random writes, each block read back and compared with its checksum.
SIZE=$([ -n "${SANDPAIL_LONG:-}" ] && echo 256m || echo 32m)
cd "$MNT"
for engine in psync mmap; do
    fio --name=v --filename=v.$engine --size="$SIZE" --bsrange=1k-64k --rw=randwrite --ioengine=$engine --randseed=7 \
        --verify=crc32c --verify_fatal=1 --do_verify=1 --output="$LOCAL/fio" --end_fsync=1 --fallocate=none \
        --aux-path="$LOCAL" || { cat "$LOCAL/fio" >&2; exit 1; }
done
fio --name=p --directory=. --numjobs=4 --size=4m --bs=4k --rw=randrw --ioengine=psync --verify=crc32c --verify_fatal=1 \
    --output="$LOCAL/fio" --fallocate=none --aux-path="$LOCAL" --group_reporting || { cat "$LOCAL/fio" >&2; exit 1; }
