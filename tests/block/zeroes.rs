//! Writes of zeros that are found out to be that.

use crate::fixture::Folder;
use cowvm::block::Buffer;
use cowvm::block::drive::Drive;
use cowvm::block::options::{DetectZeroes, OpenOptions};

/// What qemu-img shows of the first cluster after it was written with data and then with zeros.
fn first_cluster(detect_zeroes: DetectZeroes) -> String {
    let folder = Folder::new();
    folder.qemu_img("create -q -f qcow2 a 1M");
    let options = OpenOptions {
        format: Some("qcow2".into()),
        read_only: false,
        unmap: true,
        detect_zeroes,
        ..OpenOptions::default()
    };
    let drive = Drive::open("a", folder.path("a").to_str().unwrap(), &options).unwrap();
    let write = |byte: u8| {
        let work = move |local: std::rc::Rc<cowvm::block::drive::Local>| async move {
            let bytes = Buffer::from_bytes(&[byte; 65536]).iov(65536);
            local.write(0, &bytes).await
        };
        drive.call(work).unwrap().unwrap();
    };
    write(7);
    write(0);
    drive.close().unwrap();
    assert!(folder.content("qcow2", "a").iter().all(|&byte| byte == 0));
    let map: serde_json::Value = serde_json::from_str(&folder.qemu_img("map --output=json a")).unwrap();
    format!("{} {}", map[0]["data"], map[0]["offset"].is_u64())
}

#[test]
fn written_zeros_become_zero_clusters_that_keep_their_place_or_give_it_back() {
    assert_eq!(first_cluster(DetectZeroes::Off), "true true");
    assert_eq!(first_cluster(DetectZeroes::On), "false true");
    assert_eq!(first_cluster(DetectZeroes::Unmap), "false false");
}
