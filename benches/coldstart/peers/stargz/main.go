// Command containerd-stargz-grpc serves the library of stargz-snapshotter, with its defaults, as its project's program of that name does:
// Debian packages the library and the client (ctr-remote) without it. Registries are anonymous, and plain HTTP on loopback.
package main

import (
	"context"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/contrib/snapshotservice"
	"github.com/containerd/containerd/reference"
	"github.com/containerd/containerd/remotes/docker"
	"github.com/containerd/stargz-snapshotter/fs"
	"github.com/containerd/stargz-snapshotter/fs/config"
	"github.com/containerd/stargz-snapshotter/fs/source"
	"github.com/containerd/stargz-snapshotter/snapshot"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: containerd-stargz-grpc SOCKET ROOT")
	}
	if err := serve(os.Args[1], os.Args[2]); err != nil {
		log.Fatal(err)
	}
}

func serve(socket, root string) error {
	client := &http.Client{Transport: http.DefaultTransport}
	registries := docker.ConfigureDefaultRegistries(docker.WithClient(client), docker.WithPlainHTTP(docker.MatchLocalhost))
	hosts := func(image reference.Spec) ([]docker.RegistryHost, error) { return registries(image.Hostname()) }
	lazy, err := fs.NewFilesystem(filepath.Join(root, "stargz"), config.Config{}, fs.WithGetSources(source.FromDefaultLabels(hosts)))
	if err != nil {
		return err
	}
	snapshotter, err := snapshot.NewSnapshotter(context.Background(), filepath.Join(root, "snapshotter"), lazy, snapshot.AsynchronousRemove)
	if err != nil {
		return err
	}
	defer snapshotter.Close()
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(snapshotter))
	end := make(chan os.Signal, 1)
	signal.Notify(end, unix.SIGTERM, unix.SIGINT)
	go func() {
		<-end
		server.Stop()
	}()
	return server.Serve(listener)
}
