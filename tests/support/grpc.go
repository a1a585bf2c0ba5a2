// A gRPC client as Go programs have one, of a release that takes a socket's path for the name of a host.
//
//	grpc SOCKET [AUTHORITY]
//
// Each line of the input is a method and a request in hex; each line of the output is a status and the answer in hex, or what is
// wrong. All calls go over one connection.
package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

// Messages as they are.
type raw struct{}

func (raw) Marshal(message interface{}) ([]byte, error) { return *message.(*[]byte), nil }

func (raw) Unmarshal(data []byte, message interface{}) error {
	*message.(*[]byte) = append([]byte(nil), data...)
	return nil
}

func (raw) Name() string { return "proto" }

func main() {
	dial := func(context context.Context, address string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(context, "unix", os.Args[1])
	}
	const most = 64 << 20
	options := []grpc.DialOption{
		grpc.WithInsecure(), grpc.WithContextDialer(dial),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{}), grpc.MaxCallRecvMsgSize(most), grpc.MaxCallSendMsgSize(most)),
	}
	if len(os.Args) > 2 {
		options = append(options, grpc.WithAuthority(os.Args[2]))
	}
	connection, err := grpc.Dial(os.Args[1], options...)
	if err != nil {
		panic(err)
	}
	input := bufio.NewReader(os.Stdin)
	for {
		line, err := input.ReadString('\n')
		if err != nil {
			return
		}
		words := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 2)
		request, err := hex.DecodeString(words[1])
		if err != nil {
			panic(err)
		}
		var answer []byte
		if err := connection.Invoke(context.Background(), words[0], &request, &answer); err != nil {
			failure := status.Convert(err)
			fmt.Println(failure.Code(), strings.ReplaceAll(failure.Message(), "\n", " "))
			continue
		}
		fmt.Println("OK", hex.EncodeToString(answer))
	}
}
