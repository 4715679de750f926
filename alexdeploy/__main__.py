from alexdeploy.cli.app import main

main()
