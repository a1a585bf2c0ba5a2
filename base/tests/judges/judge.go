// What Go's archive/tar makes of archives, asked over pipes.
//
// stdin has requests, stdout gets answers: a length of four bytes, little-endian, and so many bytes. A request is an archive, an
// answer a line a member, as `line` in base/tests/judges/mod.rs writes it, and then "end" or "refused".
package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"sort"
	"strings"
)

// Bytes of a member that are looked at: a sparse one may have 2^63.
const looked = 1 << 20

const xattr = "SCHILY.xattr."

func main() {
	in, out := bufio.NewReader(os.Stdin), bufio.NewWriter(os.Stdout)
	for {
		var length uint32
		if err := binary.Read(in, binary.LittleEndian, &length); err != nil {
			return
		}
		archive := make([]byte, length)
		if _, err := io.ReadFull(in, archive); err != nil {
			panic(err)
		}
		answer := judge(archive)
		binary.Write(out, binary.LittleEndian, uint32(len(answer)))
		out.Write(answer)
		if err := out.Flush(); err != nil {
			return
		}
	}
}

func judge(archive []byte) []byte {
	var lines bytes.Buffer
	// Not a seeker: a layer is a stream.
	reader := tar.NewReader(struct{ io.Reader }{bytes.NewReader(archive)})
	for {
		header, err := reader.Next()
		if err == io.EOF {
			lines.WriteString("end\n")
			return lines.Bytes()
		}
		if err == nil {
			err = member(&lines, reader, header)
		}
		if err != nil {
			fmt.Fprintf(&lines, "refused %v\n", err)
			return lines.Bytes()
		}
	}
}

func member(lines *bytes.Buffer, reader *tar.Reader, h *tar.Header) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		fmt.Fprintf(lines, "%02x %x\n", h.Typeflag, h.Name)
		return nil
	}
	size := h.Size
	switch h.Typeflag {
	case tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeDir, tar.TypeFifo:
		size = 0
	}
	data := io.Reader(reader)
	if size > looked {
		data = io.LimitReader(reader, looked)
	}
	sum := crc32.NewIEEE()
	read, err := io.Copy(sum, data)
	if err != nil {
		return err
	}
	var xattrs []string
	for key, value := range h.PAXRecords {
		if strings.HasPrefix(key, xattr) {
			xattrs = append(xattrs, fmt.Sprintf("%x=%x", key[len(xattr):], value))
		}
	}
	sort.Strings(xattrs)
	fmt.Fprintf(lines, "%02x %x link=%x size=%d mode=%d uid=%d gid=%d mtime=%d.%09d device=%d:%d xattrs=%s data=%d:%08x\n",
		h.Typeflag, h.Name, h.Linkname, size, h.Mode, h.Uid, h.Gid, h.ModTime.Unix(), h.ModTime.Nanosecond(),
		h.Devmajor, h.Devminor, strings.Join(xattrs, ","), read, sum.Sum32())
	return nil
}
