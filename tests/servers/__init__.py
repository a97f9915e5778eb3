"""The servers that tests of remotes run against, one module each, and what they share.

A fixture of `tests/conftest.py` starts a server where a test first asks for it and stops it with the last process that
uses it. Nothing needs to be running, nothing listens on more than the loopback address, and no test needs root.

    s3_server             an S3 server with a bucket for every test: your own, else Ceph, else moto's server
    real_s3_server        the same, never moto: for races and for faults
    restartable_s3_server a Ceph of its own that tests kill and start again
    fault_proxy           a proxy before `real_s3_server` that makes chosen requests fail (plain HTTP only)
    sftp_server           OpenSSH's sshd
    swift_server          OpenStack Swift: S3 without conditional writes, and it says so
    rclone_server         `rclone serve s3`: S3 whose conditional writes overwrite without a word
    moto_server           moto's server

A test that needs a server whose programs are not installed is left out, and the last lines of the run name it:

    ceph     radosgw ceph-mon ceph-osd ceph-common                            Debian packages
    sshd     openssh-server                                                   Debian package
    swift    swift-proxy swift-account swift-container swift-object memcached Debian packages
    rclone, moto                                                              come with `make install`

The suite against an S3 server of your own, which must let the key create buckets and delete them:

    export AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=...
    CAS_TEST_S3=https://s3.example.org make test

Each test makes buckets named `cas-test-...`; they are emptied and deleted when the run ends. AWS_DEFAULT_REGION is
heeded. A test whose server comes from a parameter says which one by a mark, so that it too is left out and named:
`@pytest.mark.server("sftp")`, with the name of a fixture without `_server`.
"""
