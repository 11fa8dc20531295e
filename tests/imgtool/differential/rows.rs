//! The tables: templates of command lines, by command.

use super::Case;
use super::expand::expand;

/// All commands of qemu-img.
pub(super) const COMMANDS: &[&str] = &[
    "amend", "bench", "bitmap", "check", "commit", "compare", "convert", "create", "dd", "info", "map",
    "measure", "rebase", "resize", "snapshot",
];

/// All lines of all tables.
pub(super) fn cases() -> Vec<Case> {
    let tables = [
        TOOL, SHARED, CREATE, INFO, MAP, CHECK, CONVERT, BITMAP, AMEND, COMPARE, RESIZE, SNAPSHOT, COMMIT,
        REBASE, DD, MEASURE, BENCH,
    ];
    tables.iter().flat_map(|table| table.iter()).flat_map(|row| expand(row)).map(Case::from).collect()
}

/// The tool and its standard options.
const TOOL: &[&str] = &[
    "''",
    "<frob|--bogus|-x|-|--|-T|--trace|--tr|-V|-h|--help|--version|--vers|-hV|-Vh|-qV>",
    "<-h|--help|-V> info small.raw",
    "-T <bogus|-bogus|block=1|file=nodir/log|bdrv_*|bdrv_*,file=log|enable=-bdrv*> info small.raw",
    "<amend|bench|bitmap|check|commit|compare|convert|create|dd|info|map|measure|rebase|resize|snapshot> <-h|--help|x y z --help>",
];

/// What all commands have: their lines are wrong in the same ways.
const SHARED: &[&str] = &[
    "<amend|bench|bitmap|check|commit|compare|convert|create|dd|info|map|measure|rebase|resize|snapshot>< | --bogus| -%| --| --object| --object secret| --object bogus,id=a| --object secret,id=s,data=a,file=b small.raw>",
    "<bench|check|info|map|resize|snapshot> small.raw extra more",
    "<bench|check|commit|info|map|measure|snapshot> <nofile|dir|'' |foo:bar|./nofile|nodir/x|foreign.vmdk|text.qcow2|old.qcow>",
    "<bench|check|commit|info|map|measure|snapshot> -f <qcow2|bogus|luks|vmdk|''> small.raw",
    "<check|info|map|measure|snapshot -l> --image-opts <driver=qcow2,file.filename=a.qcow2|file.filename=a.qcow2|driver=raw,file.driver=file,file.filename=small.raw|a.qcow2|driver=qcow2|driver=bogus,file.filename=a.qcow2|driver=qcow2,file.filename=nofile|driver=qcow2,file.filename=a.qcow2,bogus=1|driver=qcow2,file.driver=bogus,file.filename=a.qcow2|driver=file,filename=small.raw|filename=a.qcow2|driver=qcow2,file.driver=file,file.filename=a.qcow2,file.bogus=1>",
    "<check|info|map> --image-opts -f raw driver=raw,file.filename=small.raw",
    "<check|info|map> json:<{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"a.qcow2\"}}|{\"driver\":\"qcow2\",\"file.filename\":\"a.qcow2\"}|{\"file.filename\":\"small.raw\"}|{\"filename\":\"a.qcow2\"}|{|[]|1|{}|{\"driver\":\"qcow2\"}|{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"nofile\"}}|{\"driver\":\"bogus\",\"file.filename\":\"a.qcow2\"}|{\"driver\":\"file\",\"filename\":\"small.raw\"}>",
    "<check -T|convert -T|convert -t|commit -t|rebase -t|rebase -T|compare -T|bench -t|amend -t> <bogus|''|off|wb> <small.raw|small.raw out.raw>",
    "<check|convert|info|map|compare|measure> -U < a.qcow2|nofile|-f raw small.raw|-q a.qcow2>",
];

const CREATE: &[&str] = &[
    "create<| -q> -f <raw|qcow2|luks|bogus|vdi> out < |1M|0|1.5M|-1|1x|9E|8E|1M extra>",
    "create -f qcow2 -o <help|?|size=1M,help|size=1M|size=1M,size=2M|size=1k,cluster_size=512|bogus=1|size|size=x|cluster_size=100|cluster_size=4M|cluster_size=1|compat=0.9|compat=0.10,lazy_refcounts=on|compat=v3,lazy_refcounts=on|refcount_bits=3|refcount_bits=128|refcount_bits=1|compat=v2,refcount_bits=8|preallocation=bogus|preallocation=metadata|preallocation=full|preallocation=falloc|extended_l2=on|extended_l2=on,cluster_size=8k|extended_l2=bogus|compression_type=bogus|compression_type=zstd|compression_type=zstd,compat=v2|data_file=d.raw|data_file_raw=on|data_file=d.raw,data_file_raw=on|data_file=d.raw,compat=v2|backing_fmt=raw|encryption=on|encrypt.format=bogus|encrypt.format=luks|encrypt.key-secret=x|nocow=on|nocow=maybe|,|''|size=1M,|,size=1M> out 1M",
    "create -o <help|?|preallocation=metadata|preallocation=falloc|preallocation=bogus|cluster_size=4k|size=3M|nocow=off|extent_size_hint=x> out",
    "create -f <raw|qcow2|luks|bogus> -o <help|?>",
    "create<| -u> -f qcow2 -b <base.raw|base.qcow2|nofile|''|orphan.qcow2|out|nbd:host:1|dir|foreign.vmdk> <|-F raw|-F qcow2|-F bogus> out <|3M>",
    "create -f raw <-b base.raw|-F raw|-b base.raw -F raw> out 1M",
    "create -f qcow2 <-F raw|-u -F qcow2|-u|-b base.raw -F raw -o backing_file=base.qcow2|-o backing_file=base.raw|-o backing_file=base.raw,backing_fmt=raw> out <|1M>",
    "create <dir|nodir/out|foo:bar|file:out|small.raw|a.qcow2|''> 1M",
    "create -f qcow2 <dir|nodir/out|foo:bar|file:out|small.raw> 1M",
    "create -f qcow2 -o data_file=<nodir/x|d.raw|small.raw|nbd:x|json:{}>,preallocation=<off|full> <a.qcow2|new.qcow2|dir/y> 1M",
    "create --object secret,id=s,data=abc -f <luks -o iter-time=10|luks -o iter-time=10,key-secret=s|luks -o iter-time=10,key-secret=t|qcow2 -o encrypt.iter-time=10,encrypt.format=luks,encrypt.key-secret=s|qcow2 -o encrypt.format=luks|qcow2 -o encrypt.format=luks,encrypt.key-secret=t|qcow2 -o encrypt.format=aes,encrypt.key-secret=s|luks -o iter-time=10,key-secret=s,cipher-alg=bogus> out 1M",
    "create --object secret,id=s,<file=key.txt|file=nofile|file=key64.txt,format=base64|data=YWJj,format=base64|data=a,format=bogus|data=!!,format=base64|file=dir> -f luks -o iter-time=10,key-secret=s out 1M",
    "create --object {\"qom-type\":\"secret\",\"id\":\"s\",\"data\":\"abc\"} -f luks -o iter-time=10,key-secret=<s|t> out 1M",
    "create --object <secret,id=1,data=a|secret,data=a|secret,id=a|id=a|secret,id=a,data=b,c=d|secret,id=a,keyid=b,data=c|rng-random,id=a|tls-creds-x509,id=t,dir=.|throttle-group,id=t> out 1M",
];

const INFO: &[&str] = &[
    "info<| --output=json| --backing-chain| --backing-chain --output=json> <small.raw|odd.raw|empty.raw|a.qcow2|v2.qcow2|sub.qcow2|lazy.qcow2|pre.qcow2|data.qcow2|rawdata.qcow2|top.qcow2|ov.qcow2|dir/ov.qcow2|./a.qcow2|file:a.qcow2|snap.qcow2|marks.qcow2|orphan.qcow2|remote.qcow2|zlib.qcow2|zstd.qcow2|dirty.qcow2|corrupt.qcow2|unknown.qcow2|short.qcow2|cut.qcow2|none.qcow2|tiny.qcow2|vol.luks|luks.qcow2|aes.qcow2>",
    "info --output=<bogus|''|human|JSON> a.qcow2",
    "info -f <raw|qcow2> <--output=json|-U> <a.qcow2|short.qcow2|empty.raw>",
    "info --object secret,id=s,data=<abc|bad> --image-opts driver=<luks,key-secret=s,file.filename=vol.luks|qcow2,encrypt.key-secret=s,file.filename=luks.qcow2|qcow2,encrypt.format=aes,encrypt.key-secret=s,file.filename=aes.qcow2>",
    "info --image-opts --output=json driver=qcow2,file.filename=top.qcow2",
    "info --image-opts <driver=qcow2,file.filename=top.qcow2,backing.driver=qcow2|driver=qcow2,file.filename=a.qcow2,lazy-refcounts=on|driver=qcow2,file.filename=a.qcow2,l2-cache-size=1M|driver=qcow2,file.filename=a.qcow2,read-only=on|driver=qcow2,file.filename=a.qcow2,cache.direct=on|driver=qcow2,file.filename=a.qcow2,node-name=x|driver=qcow2,file.filename=a.qcow2,discard=unmap|driver=raw,file.filename=small.raw,offset=4096|driver=raw,file.filename=small.raw,size=4096>",
];

const MAP: &[&str] = &[
    "map<| --output=json> <small.raw|odd.raw|empty.raw|a.qcow2|v2.qcow2|sub.qcow2|lazy.qcow2|pre.qcow2|data.qcow2|rawdata.qcow2|top.qcow2|ov.qcow2|short-ov.qcow2|dir/ov.qcow2|snap.qcow2|orphan.qcow2|zlib.qcow2|dirty.qcow2|corrupt.qcow2|cut.qcow2|l2.qcow2|none.qcow2|tiny.qcow2|vol.luks|luks.qcow2>",
    "map --output=json <-s|--start-offset> <0|1|64k|1M|5M|8E|-1|x|''> <|-l 0|-l 1|-l 100k|--max-length=1M|-l x|-l -1> a.qcow2",
    "map --output=bogus a.qcow2",
    "map --image-opts <driver=qcow2,file.filename=ov.qcow2,backing.file.filename=small.raw|driver=qcow2,file.filename=ov.qcow2,backing.driver=qcow2|driver=raw,file.filename=small.raw,offset=64k,size=600k|driver=raw,file.filename=small.raw,size=4G|driver=raw,file.filename=small.raw,offset=4G|driver=raw,file.filename=small.raw,size=100|driver=raw,file.filename=small.raw,offset=x>",
    "map json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"ov.qcow2\"},\"backing\":null}",
    "<info|map> json:{'driver':'raw','file.filename':'<small.raw|it\\'s>'}",
    "info --image-opts driver=raw,file.filename=small.raw,<read-only=maybe|discard=maybe|detect-zeroes=maybe|file.locking=maybe|file.aio=maybe|cache.direct=x|node-name=1x|file.locking=off,file.aio=threads,force-share=on,file.node-name=y,auto-read-only=on>",
];

const CHECK: &[&str] = &[
    "check<| --output=json| -q> <small.raw|a.qcow2|v2.qcow2|sub.qcow2|top.qcow2|data.qcow2|snap.qcow2|marks.qcow2|zlib.qcow2|dirty.qcow2|corrupt.qcow2|unknown.qcow2|short.qcow2|cut.qcow2|leak.qcow2|refs.qcow2|l2.qcow2|none.qcow2|luks.qcow2|vol.luks|orphan.qcow2>",
    "check -r <leaks|all> < |--output=json> <a.qcow2|leak.qcow2|refs.qcow2|l2.qcow2|dirty.qcow2|corrupt.qcow2|cut.qcow2|snap.qcow2>",
    "check -r <bogus|leaks -U|all -q> leak.qcow2",
    "check -r all small.raw",
    "check -T <none|directsync|writethrough|unsafe|writeback> a.qcow2",
];

const CONVERT: &[&str] = &[
    "convert -O <raw|qcow2> <small.raw|odd.raw|empty.raw|a.qcow2|v2.qcow2|sub.qcow2|lazy.qcow2|pre.qcow2|data.qcow2|rawdata.qcow2|top.qcow2|ov.qcow2|short-ov.qcow2|dir/ov.qcow2|snap.qcow2|marks.qcow2|zlib.qcow2|zstd.qcow2|dirty.qcow2|none.qcow2|tiny.qcow2> out",
    "convert <corrupt.qcow2|unknown.qcow2|short.qcow2|cut.qcow2|refs.qcow2|l2.qcow2|orphan.qcow2|remote.qcow2|vol.luks|luks.qcow2|foreign.vmdk|nofile> out",
    "convert <-c|-c -o compression_type=zstd|-c -o cluster_size=4k|-o preallocation=metadata|-o preallocation=full|-o extended_l2=on|-o compat=v2|-o bogus=1|-o size=1M|-o help|-o data_file=d.raw|-o lazy_refcounts=on> -O qcow2 <small.raw|ov.qcow2> out",
    "convert -c <small.raw out|-O qcow2 -W small.raw out|-O qcow2 -o preallocation=metadata small.raw out|-O luks small.raw out>",
    "convert -S <0|512|4k|64k|1M|100|1x|''|-1|17M> -O <raw|qcow2> small.raw out",
    "convert -m <1|4|16|0|17|x|''> small.raw out",
    "convert <-W|-p|-q|-p -q|-t none|-t writethrough|-t unsafe|-T none|-T unsafe|-f raw|-f qcow2|-U|--salvage|-C|-C -S 4k|-r 1G|-r x> small.raw out",
    "convert -n <small.raw other.raw|small.raw nofile|long.raw small.raw|-O qcow2 a.qcow2 small.raw|-o size=1M small.raw other.raw|small.raw dir|-O raw a.qcow2 long.raw|--target-is-zero small.raw zero.raw>",
    "convert --target-is-zero <small.raw zero.raw|-O qcow2 small.raw out>",
    "convert <-B base.raw|-B base.raw -F raw|-B base.raw -F bogus|-B nofile -F raw|-B base.qcow2 -F qcow2|-F raw|-o backing_file=base.raw,backing_fmt=raw> -O <qcow2|raw> ov.qcow2 out",
    "convert <small.raw other.raw out|-O qcow2 small.raw a.qcow2 out|-B base.raw -F raw -O qcow2 small.raw other.raw out|small.raw nofile out|odd.raw odd.raw out>",
    "convert -l <one|1|two|nope|snapshot.id=1|snapshot.name=one|snapshot.id=2,snapshot.name=two|snapshot.bogus=1|''> snap.qcow2 out",
    "convert --bitmaps -O <qcow2|raw> <marks.qcow2|small.raw> out",
    "convert <--skip-broken-bitmaps|-B|-n -o help|-s one|--target-image-opts|--target-image-opts -n> small.raw out",
    "convert --image-opts <driver=qcow2,file.filename=a.qcow2 out|-f raw driver=raw,file.filename=small.raw out|small.raw out>",
    "convert -n --target-image-opts small.raw <driver=raw,file.filename=other.raw|driver=qcow2,file.filename=a.qcow2|other.raw|driver=raw,file.filename=nofile>",
    "convert --object secret,id=s,data=<abc|bad> --image-opts <driver=luks,key-secret=s,file.filename=vol.luks out|driver=qcow2,encrypt.key-secret=s,file.filename=luks.qcow2 out|-O qcow2 driver=qcow2,encrypt.format=aes,encrypt.key-secret=s,file.filename=aes.qcow2 out>",
    "convert<| small.raw| small.raw small.raw| small.raw dir| small.raw nodir/x| small.raw foo:y| dir out| -O bogus small.raw out| -O vdi -n small.raw out| -f bogus small.raw out>",
    "convert small.raw <a.qcow2|other.raw|./out|file:out|''>",
];

const BITMAP: &[&str] = &[
    "bitmap <--add|--add -g 64k|--add --disable|--add --clear|--add --remove> <a.qcow2|marks.qcow2|v2.qcow2|small.raw|nofile|-f raw a.qcow2|data.qcow2> new",
    "bitmap --add -g <100|256|4G|x|-1|0> a.qcow2 new",
    "bitmap <--remove|--clear|--enable|--disable|--merge second|--merge nope|--merge first|--disable --clear --enable|--remove --add|-g 64k --clear> <marks.qcow2|a.qcow2> first",
    "bitmap --merge <first|nope> -b <marks.qcow2|-F qcow2 marks.qcow2|nofile|small.raw> <--add a.qcow2|marks.qcow2> new",
    "bitmap <--add|--add a.qcow2|--add a.qcow2 ''|a.qcow2 b|--add a.qcow2 b c|-F raw --add a.qcow2 b|-b marks.qcow2 --add a.qcow2 b|--merge|--image-opts --add driver=qcow2,file.filename=a.qcow2 b>",
];

const AMEND: &[&str] = &[
    "amend<| -q| -p> -o <compat=v2|compat=v3|compat=bogus|lazy_refcounts=on|lazy_refcounts=off|refcount_bits=1|refcount_bits=8|refcount_bits=64|refcount_bits=3|size=8M|size=1M|bogus=1|cluster_size=4k|backing_file=base.raw|preallocation=full|encryption=on|data_file=x|data_file_raw=on|compression_type=zstd|help|?> <a.qcow2|v2.qcow2>",
    "amend<| -o size=1M| -o compat=v2 small.raw| -o compat=v2 nofile| -o compat=v2 a.qcow2 b| -f raw -o size=1M small.raw| -f bogus -o size=1M a.qcow2| -f qcow2 -o help| -o help| -t none -o compat=v2 a.qcow2>",
    "amend -o compat=v2 <snap.qcow2|marks.qcow2|sub.qcow2|zstd.qcow2|data.qcow2|lazy.qcow2|dirty.qcow2|corrupt.qcow2|top.qcow2>",
    "amend --object secret,id=s,data=abc --object secret,id=t,data=new --image-opts -o <state=active,new-secret=t,iter-time=10|state=inactive,keyslot=0|state=bogus> driver=luks,key-secret=s,file.filename=vol.luks",
];

const COMPARE: &[&str] = &[
    "compare<| -s| -q| -p> <small.raw small.raw|small.raw other.raw|small.raw long.raw|long.raw small.raw|a.qcow2 a.qcow2|base.raw base.qcow2|base.raw ov.qcow2|zero.raw none.qcow2|zlib.qcow2 small.raw|zlib.qcow2 zstd.qcow2|odd.raw small.raw|empty.raw zero.raw|top.qcow2 mid.qcow2|snap.qcow2 marks.qcow2|small.raw nofile|nofile small.raw|cut.qcow2 a.qcow2|l2.qcow2 a.qcow2>",
    "compare<| small.raw| a b c| -f qcow2 small.raw a.qcow2| -F raw small.raw a.qcow2| -f raw -F raw a.qcow2 a.qcow2| -f bogus small.raw a.qcow2| -T none small.raw a.qcow2| --image-opts driver=raw,file.filename=small.raw driver=qcow2,file.filename=a.qcow2| -U -f raw small.raw a.qcow2>",
];

const RESIZE: &[&str] = &[
    "resize<| -q| --shrink> -f <raw small.raw|qcow2 a.qcow2|qcow2 v2.qcow2|qcow2 snap.qcow2|qcow2 marks.qcow2|qcow2 ov.qcow2|qcow2 data.qcow2> <2M|+1M|-512k|1M|100|0>",
    "resize <small.raw 2M|a.qcow2 +1x|a.qcow2 x|a.qcow2 ''|a.qcow2|2M|a.qcow2 +|a.qcow2 -|a.qcow2 -8M|a.qcow2 9E|a.qcow2 1M extra|nofile 1M|-f raw a.qcow2 8M|-f bogus a.qcow2 8M|vol.luks 2M|-5M|--shrink a.qcow2 -1M>",
    "resize --preallocation=<off|metadata|falloc|full|bogus> -f <raw small.raw|qcow2 a.qcow2> <+1M|+0>",
];

const SNAPSHOT: &[&str] = &[
    "snapshot< | -l| -q -l| -U -l> <snap.qcow2|a.qcow2|small.raw|marks.qcow2|corrupt.qcow2|luks.qcow2|nofile>",
    "snapshot <-c new|-c one|-c ''|-a one|-a 1|-a 2|-a nope|-d one|-d 1|-d 2|-d nope|-d ''|-l -c x|-c x -d y|-a|-q -c new> <snap.qcow2|a.qcow2|small.raw|v2.qcow2>",
    "snapshot <-U -c x snap.qcow2|--image-opts -l driver=qcow2,file.filename=snap.qcow2|-c x ov.qcow2|-c x data.qcow2>",
    "snapshot --<create new|apply one|delete one|list|create=new> snap.qcow2",
];

const COMMIT: &[&str] = &[
    "commit<| -q| -d| -p> <ov.qcow2|short-ov.qcow2|top.qcow2|mid.qcow2|dir/ov.qcow2|a.qcow2|small.raw|orphan.qcow2>",
    "commit -b <base.qcow2|mid.qcow2|nofile|top.qcow2|./base.qcow2|''> top.qcow2",
    "commit<| a b| -f qcow2 ov.qcow2| -f raw ov.qcow2| -t none ov.qcow2| -r 1G ov.qcow2| -r x ov.qcow2| --image-opts driver=qcow2,file.filename=ov.qcow2>",
];

const REBASE: &[&str] = &[
    "rebase<| -u| -c| -p> -b <base.raw -F raw|base.qcow2 -F qcow2|''|nofile -F raw|base.raw|base.raw -F bogus> <ov.qcow2|top.qcow2|a.qcow2>",
    "rebase<| ov.qcow2| -b base.raw| -b base.raw -F raw small.raw| -b base.raw -F raw nofile| -u -b nofile -F raw orphan.qcow2| -b '' orphan.qcow2| -q -b '' ov.qcow2| -t none -T none -b '' ov.qcow2| -f raw -b base.raw -F raw ov.qcow2| -b ov.qcow2 -F qcow2 ov.qcow2>",
];

const DD: &[&str] = &[
    "dd<| -O qcow2> if=<small.raw|a.qcow2|ov.qcow2|odd.raw> of=out <|bs=1k|bs=64k count=3|bs=4k skip=5|bs=1M skip=2|bs=512 count=0|bs=1000>",
    "dd< | if=small.raw| of=out| if=nofile of=out| if=small.raw of=out foo=1| if=small.raw of=out bs=0| if=small.raw of=out bs=x| if=small.raw of=out count=x| if=small.raw of=out skip=-1| foo| -f qcow2 if=small.raw of=out| -f raw if=a.qcow2 of=out| -O bogus if=small.raw of=out| if=small.raw of=nodir/out| if=small.raw of=other.raw| -U if=small.raw of=out| if=small.raw of=out bs=| --image-opts if=driver=qcow2,file.filename=a.qcow2 of=out>",
];

const MEASURE: &[&str] = &[
    "measure<| --output=json> <--size 1G|--size 0|--size x|--size 1M small.raw|small.raw|a.qcow2|top.qcow2|marks.qcow2|snap.qcow2|zlib.qcow2|data.qcow2|-l one snap.qcow2|-l nope snap.qcow2|odd.raw|-s 1M|>",
    "measure -O <raw|qcow2|luks|bogus|vdi|''> <--size 1G|small.raw|ov.qcow2|marks.qcow2>",
    "measure -O qcow2 -o <cluster_size=4k|cluster_size=2M|extended_l2=on|compat=v2|refcount_bits=1|preallocation=full|preallocation=metadata|backing_file=base.raw,backing_fmt=raw|bogus=1|cluster_size=3|help> <--size 1T|a.qcow2>",
];

const BENCH: &[&str] = &[
    "bench<| -q> -c <1|10|0|x> <-d 1|-d 4|-d 0> -f raw small.raw",
    "bench -c 10 <-w|-w --pattern=65|--pattern=65|-w --pattern=256|-w --flush-interval=5 -d 2|-w --flush-interval=5|--flush-interval=5|-w --flush-interval=5 --no-drain -d 2|--no-drain|-o 512k|-o -1|-s 64k|-s 0|-s x|-S 8k|-S x|-n|-t none -n|-i threads|-i io_uring|-i bogus|-U|-w -U|-c 3 -d 3 -s 2047M> -f raw small.raw",
    "bench -c 1 --<quiet|qui|native|no-drain|count 2|pattern=1> -f raw small.raw",
];
