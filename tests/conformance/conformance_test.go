// containerd's own conformance suite for snapshotters, run against `lazo snapshotter` through containerd's proxy client.
// `make conformance` starts the service and names its socket in LAZO_SNAPSHOTTER_SOCKET.
package conformance

import (
	"context"
	"os"
	"testing"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	_ "github.com/containerd/containerd/pkg/testutil"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/proxy"
	"github.com/containerd/containerd/snapshots/testsuite"
	"google.golang.org/grpc"
)

func TestSnapshotter(t *testing.T) {
	address := "unix://" + os.Getenv("LAZO_SNAPSHOTTER_SOCKET")
	connection, err := grpc.Dial(address, grpc.WithInsecure())
	if err != nil {
		t.Fatal(err)
	}
	// One service for all tests, which run in parallel.
	open := func(context.Context, string) (snapshots.Snapshotter, func() error, error) {
		return proxy.NewSnapshotter(api.NewSnapshotsClient(connection), "lazo"), nil, nil
	}
	testsuite.SnapshotterSuite(t, "overlayfs", open)
}
