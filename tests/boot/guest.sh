#!/bin/sh
# Makes a disk that boots Debian's kernel by syslinux, with a busybox that writes to the disk.
#
#     tests/boot/guest.sh FOLDER
#
# Leaves FOLDER/guest.raw. Needs apt-get with a mirror, dpkg, syslinux, mtools, sfdisk, cpio.
set -eu
export PATH="$PATH:/usr/sbin:/sbin"
cd "$1"
rm -rf work
mkdir -p work/tree/bin work/tree/dev work/tree/proc
cd work
kernel=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ { print $2; exit }')
apt-get -qq download "$kernel" busybox-static syslinux-common
for package in *.deb; do
    dpkg -x "$package" packages
done
version=${kernel#linux-image-}
cp packages/bin/busybox tree/bin/busybox
modules=
for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk; do
    cp "$(find "packages/lib/modules/$version" -name "$module.ko")" "tree/$module.ko"
    modules="$modules /$module.ko"
done
cat >tree/init <<END
#!/bin/busybox sh
export PATH=/bin
busybox mount -t proc none /proc
busybox --install -s /bin
mount -t devtmpfs none /dev
for module in$modules; do insmod \$module; done
while ! [ -b /dev/vda ]; do sleep 1; done
printf 'written by the guest' | dd of=/dev/vda bs=512 seek=120000 conv=fsync
sync
found=\$(dd if=/dev/vda bs=20 skip=3072000 count=1)
echo "the disk of \$(uname -s) says: \$found"
while true; do sleep 100; done
END
chmod +x tree/init
(cd tree && find . | cpio --quiet -o -H newc) | gzip >initramfs
cat >syslinux.cfg <<END
DEFAULT linux
LABEL linux
    KERNEL vmlinuz
    APPEND initrd=initramfs console=ttyS0 panic=1
END
truncate -s 64M disk
printf 'label: dos\nstart=2048, type=c, bootable\n' | sfdisk -q disk
mformat -i disk@@1M -T $((62 * 2048)) -h 64 -s 32 ::
mcopy -i disk@@1M packages/boot/vmlinuz-"$version" ::vmlinuz
mcopy -i disk@@1M initramfs syslinux.cfg ::
syslinux --install --offset 1048576 disk
dd if=packages/usr/lib/syslinux/mbr/mbr.bin of=disk bs=440 count=1 conv=notrunc status=none
mv disk ../guest.raw
cd ..
rm -rf work
